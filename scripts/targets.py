"""What was set out to be reached, beside what was measured: from the results in docs/results/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from scripts.columns import Row, table

Rows = Sequence[Row]


class Measured(NamedTuple):
    """A figure, and the ends of its interval or the smallest and largest of the repeats."""

    value: float
    low: float | None = None
    high: float | None = None


Find = Callable[[Rows], Measured]


class Target(NamedTuple):
    """A figure that was asked for.

    Attributes:
        what: in words.
        results: where it was measured, docs/results/NAME.json.
        find: takes it from the rows of that file.
        asked: the figure.
        form: how to print it.
        at_least: whether a larger one is better.
    """

    what: str
    results: str
    find: Find
    asked: float
    form: str
    at_least: bool = False

    def cells(self, rows: Rows | None) -> list[str]:
        """One line of the table; no rows, not measured."""
        asked = f"{'≥' if self.at_least else '≤'} {self.asked:{self.form}}"
        if rows is None:
            return [self.what, asked, "not measured", "—"]
        value, low, high = self.find(rows)
        shown = f"{value:{self.form}}"
        if low is not None and high is not None and low < high:
            shown += f" ({low:{self.form}}–{high:{self.form}})"
        met = value >= self.asked if self.at_least else value <= self.asked
        return [self.what, asked, shown, "yes" if met else "**no**"]


def targets_table(results: Mapping[str, Row]) -> list[str]:
    """All targets; `results` has what docs/results/ holds, by name."""
    lines = []
    for title, targets in TARGETS.items():
        lines += ["", f"## {title}", ""]
        lines += table(
            ["", "asked", "measured", "reached"],
            [
                target.cells(results[target.results]["rows"] if target.results in results else None)
                for target in targets
            ],
        )
    return lines


def only(rows: Rows, **where: object) -> Row:
    """The one row with these values."""
    (found,) = (row for row in rows if where.items() <= row.items())
    return found


def figure(name: str, within: str | None = None, **where: object) -> Find:
    """A column of the one row with these values, or of a part of that row."""

    def find(rows: Rows) -> Measured:
        row = only(rows, **where)
        if within is not None:
            row = row[within]
        return Measured(row[name], row.get(f"{name}_low"), row.get(f"{name}_high"))

    return find


def largest(name: str, **where: object) -> Find:
    """The largest of a column among the rows with these values."""
    return lambda rows: Measured(max(row[name] for row in rows if where.items() <= row.items()))


def largest_share(waiting: int) -> Find:
    """The largest share of a step that is added, in %, from the times: shares are kept rounded."""
    return lambda rows: Measured(
        max(100 * row["added_us"] / row["stock_us"] for row in rows if row["waiting"] == waiting)
    )


def smallest(name: str, **where: object) -> Find:
    """The smallest of a column among the rows with these values."""
    return lambda rows: Measured(min(row[name] for row in rows if where.items() <= row.items()))


def kept_of_twin(name: str) -> Find:
    """A figure of a policy that pauses over that of its twin that never preempts, the smallest."""

    def find(rows: Rows) -> Measured:
        cases = ("workload", "load", "kv")
        twins = {
            (*(row[case] for case in cases), row["policy"]): row[name]
            for row in rows
            if row["policy"].endswith(":preemption=never")
        }
        shares = [
            row[name] / twins[*(row[case] for case in cases), f"{row['policy']}:preemption=never"]
            for row in rows
            if row["pausing"] and row["tau_probe"] is None
        ]
        return Measured(min(shares))

    return find


def of_part(part: str, *path: str) -> Find:
    """A figure of the rows that have a part, further down in it: the smallest of the repeats."""

    def find(rows: Rows) -> Measured:
        values = [row[part] for row in rows if part in row]
        for name in path:
            values = [value[name] for value in values]
        return Measured(min(values), min(values), max(values))

    return find


def p99_with_guards(rows: Rows) -> Measured:
    """The largest p99 latency of policies with a bound on overtaking, over that of fcfs."""
    fcfs = {row["load"]: row["p99_e2el_ms"] for row in rows if row["policy"] == "fcfs"}
    guarded = [row for row in rows if "max_overtakes" in row["policy"]]
    return Measured(max(row["p99_e2el_ms"] / fcfs[row["load"]] for row in guarded))


def over_twin(rows: Rows) -> Measured:
    """Mean latency of trail-bert over that of trail, at the load where it is smallest."""
    means = {(row["load"], row["policy"]): row["mean_e2el_ms"] for row in rows}
    loads = {load for load, _ in means}
    return Measured(min(means[load, "trail-bert"] / means[load, "trail"] for load in loads))


def coverage_error(rows: Rows) -> Measured:
    """How far 80 % intervals are from holding 80 %, on answers of the source trained on."""
    return Measured(max(abs(row["coverage_80"] - 0.8) for row in rows if row["floor"] is not None))


def behind_ranking(rows: Rows) -> Measured:
    """By how much the tau of a classifier with ten buckets is below the ranker's."""
    ranked = only(rows, label="Vicuna-7B")["tau"]
    return Measured(ranked - only(rows, label="Vicuna-7B: classify, 10 buckets")["tau"])


def simulated(rows: Rows, below_capacity: bool) -> list[Row]:
    """Rounds simulated at the speed that the engine had."""
    return [
        row
        for row in rows
        if row["speed"] == "second"
        and (row["load"] != "burst" and float(row["load"]) < 1) == below_capacity
    ]


def simulator_error(metric: str, what: str, below_capacity: bool) -> Find:
    """The largest error of a simulated latency."""
    return lambda rows: Measured(
        max(abs(row[metric][f"{what}_error"]) for row in simulated(rows, below_capacity))
    )


def simulated_ratio_error(below_capacity: bool) -> Find:
    """The largest error of a simulated mean latency over that of fcfs."""
    return lambda rows: Measured(
        max(
            abs(row["over_fcfs"]["e2el"]["mean_error"])
            for row in simulated(rows, below_capacity)
            if row.get("over_fcfs")
        )
    )


MODELS = ("Vicuna-7B", "CASTILLO Llama-3.1-8B", "CASTILLO Llama-3.3-70B")
#: What a guard is judged by.
GUARDED = (
    ("mean latency", "mean"),
    ("p99 latency", "p99"),
    ("longest wait of all", "worst_wait"),
)
MEAN, PER_TOKEN = "factor_mean_e2el", "factor_mean_latency_per_output_token"


def compared(load: str, title: str, mean: float, per_token: float) -> list[Target]:
    """What the two policies are to reach at one load."""
    return [
        Target(
            f"{title}: {words}, fcfs / `{policy}`",
            "comparison",
            figure(name, load=load, policy=policy),
            asked,
            ".3f",
            at_least=True,
        )
        for policy in ("ltr", "srpt")
        for words, name, asked in (
            ("mean latency", MEAN, mean),
            ("s per output token", PER_TOKEN, per_token),
            ("share of the oracle's gain", "gap_closed", 0.6),
        )
    ]


def overhead(waiting: int, words: str, name: str, asked: float) -> Target:
    """What a scheduler step may take longer."""
    what = f"added to a step, {waiting:,} waiting, slowest policy, {words}"
    return Target(what, "overhead", largest(name, waiting=waiting), asked, ".1f")


def paused(name: str, load: float, asked: float, words: str) -> list[Target]:
    """What `srpt` with pauses is to reach against fcfs at one load, memory ample."""
    return [
        Target(
            f"{words}, {load} × measured throughput: {latency}, fcfs / `srpt`",
            "pausing",
            figure(
                column,
                workload=name,
                load=load,
                kv="ample",
                policy="srpt",
                pausing=True,
                tau_probe=None,
            ),
            floor,
            form,
            at_least=True,
        )
        for latency, column, floor, form in (
            ("time to first token", "ttft", asked, ".1f"),
            ("mean latency", "mean", 1.02 if load < 1 else 2.4, ".2f"),
        )
    ]


def simulator_targets(below_capacity: bool, where: str) -> list[Target]:
    """How far simulated latencies may be from the engine's."""
    found = [
        Target(
            f"largest error {where}: {words}",
            "fidelity",
            simulator_error(metric, what, below_capacity),
            asked,
            ".3f",
        )
        for words, metric, what, asked in (
            ("mean latency", "e2el", "mean", 0.1),
            ("p99 latency", "e2el", "p99", 0.1),
            ("mean time to the first token", "ttft", "mean", 0.1),
            ("p99 time to the first token", "ttft", "p99", 0.1),
            ("mean time per token", "tpot", "mean", 0.05),
        )
    ]
    ratio = Target(
        f"largest error {where}: mean latency over that of fcfs",
        "fidelity",
        simulated_ratio_error(below_capacity),
        0.05,
        ".3f",
    )
    return [*found, ratio]


TARGETS: dict[str, list[Target]] = {
    "Latency on an A100 with 64 slots": [
        *compared("1.2", "1.2 × capacity", 1.4, 4),
        *compared("1.05", "1.05 × capacity", 1.25, 3),
        *compared("burst", "all at once", 1.35, 3),
        Target(
            "p99 latency with the default bound on overtaking, over fcfs, largest",
            "guards",
            p99_with_guards,
            1.25,
            ".3f",
        ),
    ],
    "Overhead": [
        Target(
            "added to a step, 1,000 waiting, slowest policy, %",
            "overhead",
            largest_share(1_000),
            8,
            ".2f",
        ),
        overhead(10_000, "µs", "added_us", 300),
        overhead(100_000, "µs", "added_us", 2_000),
        Target("MiB with 100,000 queued", "memory", largest("added_mib"), 100, ".0f"),
    ],
    "Prediction from the prompt": [
        *(
            Target(f"tau, {model}", "predictors", figure("tau", label=model), floor, ".3f", True)
            for model, floor in zip(MODELS, (0.54, 0.53, 0.57), strict=True)
        ),
        *(
            Target(
                f"µs a prompt, {words}, {model}",
                "predictors",
                figure(name, label=model),
                asked,
                ".0f",
            )
            for model in MODELS
            for words, name, asked in (
                ("median", "microseconds_p50", 50),
                ("p99", "microseconds_p99", 200),
            )
        ),
        Target(
            f"µs per 100 tokens of the prompt, {MODELS[0]}",
            "predictors",
            figure("microseconds_per_100_tokens", label=MODELS[0]),
            25,
            ".0f",
        ),
        Target(
            "training on 10,000 answers, s",
            "predictors",
            figure("training_seconds", label=MODELS[0]),
            30,
            ".1f",
        ),
        Target(
            "error of the coverage of 80 % intervals, largest of three models",
            "predictors",
            coverage_error,
            0.02,
            ".3f",
        ),
        Target(
            "tau of a classifier with 10 buckets is below the ranker's by",
            "predictors",
            behind_ranking,
            0,
            ".3f",
            at_least=True,
        ),
    ],
    "Learning from live traffic": [
        Target(
            "p99 step while learning at 0.8 of capacity, over the same without",
            "learning",
            figure("p99_step_ms", "learning_over_quiet"),
            1.1,
            ".2f",
        ),
        Target(
            "failed requests while learning", "learning", figure("failed", "learning"), 0, ".0f"
        ),
        Target(
            "mean latency after 500 requests of drift, over fcfs, largest",
            "drift",
            largest("drifted_over_fcfs_high"),
            1.05,
            ".2f",
        ),
        Target(
            "the same after one retraining",
            "drift",
            largest("retrained_over_fcfs_high"),
            1.05,
            ".2f",
        ),
    ],
    "Memory at its limit": [
        Target(
            "preemptions with KV blocks for 30 % of the peak, over stock vLLM's",
            "memory-grid",
            figure("preemptions_over_stock", policy="srpt", share=0.3),
            0.5,
            ".2f",
        ),
        Target(
            "tokens/s there, over stock vLLM's, median",
            "memory-grid",
            figure("throughput_over_stock", policy="srpt", share=0.3),
            1.0,
            ".2f",
            at_least=True,
        ),
    ],
    "The probe": [
        Target(
            "error of the prompt alone / probe",
            "probe",
            figure("ratio_prompt_only", label="built-in"),
            1.6,
            ".2f",
            at_least=True,
        ),
        Target(
            "error of prompt and age / probe",
            "probe",
            figure("ratio_reestimated", label="built-in"),
            1.5,
            ".2f",
            at_least=True,
        ),
        Target(
            "error of single states / probe, smallest of all models",
            "probe",
            smallest("ratio_raw"),
            1.0,
            ".2f",
            at_least=True,
        ),
        Target(
            "mean latency, `trail-bert` / `trail`, smallest of three loads, live, KV not kept",
            "trail-loads",
            over_twin,
            1.0,
            ".2f",
            at_least=True,
        ),
        Target(
            "the same in virtual time, 10 seeds, with pauses",
            "trail-forward",
            over_twin,
            1.0,
            ".3f",
            at_least=True,
        ),
        Target(
            "p99 latency of `trail` with the default bound, over fcfs, largest",
            "trail-loads",
            p99_with_guards,
            1.25,
            ".3f",
        ),
        Target(
            "added to a step of the built-in model, predicting at each, %",
            "probe-overhead",
            figure("added_percent", interval=1),
            10,
            ".1f",
        ),
        Target(
            "the same at every eighth step",
            "probe-overhead",
            figure("added_percent", interval=8),
            2,
            ".1f",
        ),
        Target(
            "added to a step of an 8B model on a GPU, batch 64, %",
            "probe-overhead-gpu",
            figure("added_percent", interval=1),
            1,
            ".1f",
        ),
        Target(
            "c = auto over the best fixed c, mean latency, largest",
            "cutoff",
            largest("against_best", c="auto", preemption="pays"),
            1.03,
            ".3f",
        ),
    ],
    "Making way without losing what was computed": [
        *paused("castillo", 0.9, 4.5, "CASTILLO"),
        *paused("log-normal", 0.9, 8, "log-normal"),
        *paused("vicuna", 0.9, 4, "Vicuna-7B"),
        *paused("castillo", 1.15, 50, "CASTILLO"),
        *paused("log-normal", 1.15, 14, "log-normal"),
        *(
            Target(
                f"{words}, over that of the twin that never preempts, smallest without a probe",
                "pausing",
                kept_of_twin(name),
                floor,
                ".2f",
                at_least=True,
            )
            for words, name, floor in (
                ("mean latency", "mean", 0.99),
                ("p99 latency", "p99", 0.97),
                ("longest wait", "longest_wait", 0.99),
            )
        ),
        *(
            Target(
                f"the same, smallest of 810 points of a grid: {words} latency",
                "preemption-grid",
                smallest(words),
                floor,
                ".4f",
                at_least=True,
            )
            for words, floor in (("mean", 0.99), ("p99", 0.97))
        ),
        *(
            Target(
                f"default guard with pauses, {where}: {words}, fcfs / `srpt`",
                "choose-guard",
                figure(name, guard="max_lead=auto", pausing=True, load=load),
                floor,
                ".3f",
                at_least=True,
            )
            for load, where, floors in (
                ("burst", "all at once", (1.42, 0.98, 0.75)),
                ("1.2", "1.2 × capacity", (1.4, 0.9, 0.75)),
                ("1.05", "1.05 × capacity", (1.4, 0.74, 0.75)),
            )
            for (words, name), floor in zip(GUARDED, floors, strict=True)
        ),
    ],
    "Several replicas, and a gateway": [
        *(
            Target(
                f"mean latency over that of power of two, `{policy}` replicas, Ray cluster",
                "ray-cluster",
                figure("over_power_of_two", policy=policy, router="predicted-wait"),
                asked,
                ".2f",
            )
            for policy, asked in (("fcfs", 0.85), ("srpt", 0.95))
        ),
        Target(
            "a routing decision among 64 replicas, µs",
            "replicas",
            figure("decide_us", replicas=64, policy="srpt", routers=1, router="predicted-wait"),
            100,
            ".0f",
        ),
        Target(
            "streams open at once through a gateway",
            "gateway",
            of_part("streams", "open_at_once"),
            1_000,
            ",.0f",
            at_least=True,
        ),
        *(
            Target(
                f"added by a gateway at 200 requests a second, {words}, ms",
                "gateway",
                of_part("latency", name),
                asked,
                ".1f",
            )
            for words, name, asked in (("median", "added_p50_ms", 2), ("p99", "added_p99_ms", 20))
        ),
        *(
            Target(
                f"share of the gain that the scheduler inside has, {words}",
                "gateway",
                of_part("gain", load, "share"),
                0.8,
                ".2f",
                at_least=True,
            )
            for load, words in (("burst", "all at once"), ("1.2", "1.2 × capacity"))
        ),
    ],
    "The simulator": [
        *(
            target
            for below, where in ((False, "at or above capacity"), (True, "below capacity"))
            for target in simulator_targets(below, where)
        ),
        *(
            Target(
                f"a million requests under `{policy}`, s",
                "speed",
                figure("seconds", policy=policy),
                asked,
                ".1f",
            )
            for policy, asked in (("fcfs", 5), ("srpt", 10))
        ),
        Target("the same, MiB", "speed", largest("peak_rss_mib"), 1024, ".0f"),
        Target(
            "preemption that pays: mean latency without it / with it, smallest of 720 points",
            "preemption",
            smallest("e2el_gain"),
            0.99,
            ".3f",
            at_least=True,
        ),
        Target(
            "`tune`: gain over that of the best of an exhaustive grid",
            "tune",
            smallest("share_of_best"),
            0.95,
            ".3f",
            at_least=True,
        ),
        Target("`tune`, s", "tune", largest("seconds_tune"), 300, ".0f"),
    ],
}
