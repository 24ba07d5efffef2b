"""How results are put for people: figures, loads and the method in words, and tables.

The words are those of the terminal and of the report. The tables are for a terminal: the
comparison, and one policy in the layout of `vllm bench serve`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lengthwise.measure.comparison import (
    Comparison,
    PolicyResult,
    Spread,
    depends_on_clock,
    knows_lengths,
    load_number,
)
from lengthwise.measure.metrics import Summary
from lengthwise.measure.results import VIRTUAL

TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"
NOTHING = "\N{EM DASH}"

#: The layout of `vllm bench serve`: its columns, and its sections of latencies.
_WIDTH = 50
_SECTIONS = (
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
    ("queue", "Queue", "Time in Queue"),
    ("latency_per_output_token", "E2EL/token", "Latency per Output Token"),
)


def seconds(milliseconds: float | None) -> str:
    """A time in seconds with three significant digits: 12345 → "12.3", 4.2 → "0.0042"."""
    if milliseconds is None or not math.isfinite(milliseconds):
        return NOTHING
    value = milliseconds / 1000
    if value == 0:
        return "0"
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{value:.{min(digits, 4)}f}"


def factor(spread: Spread | None) -> str:
    """A ratio: "1.45×"."""
    return NOTHING if spread is None else f"{spread.median:.2f}{TIMES}"


def limits(spread: Spread | None) -> str:
    """The smallest and the largest of a ratio: "1.41–1.50"; nothing for a single value."""
    if spread is None or spread.low == spread.high:
        return ""
    return f"{spread.low:.2f}{DASH}{spread.high:.2f}"


def percent(spread: Spread | None) -> str:
    """A share: "72 %"."""
    return NOTHING if spread is None else f"{spread.median * 100:.0f} %"


def change(difference: float | None) -> str:
    """A relative difference: "+2.1 %"."""
    return NOTHING if difference is None else f"{100 * difference:+.1f} %"


def load_title(load: str) -> str:
    """A load in words: "burst" → "All at once", "1.2" → "1.2 × capacity", and so on."""
    kind, _, value = load.partition("=")
    if load == "burst":
        return "All at once"
    if kind == "burst":
        return f"{value} at once"
    if kind == "rate":
        return f"{value} requests/s"
    if kind == "trace":
        return "As in the trace" if value == "1" else f"The trace, {value} times as fast"
    if kind == "concurrency":
        return f"{value} clients in a closed loop"
    return f"{load} {TIMES} capacity" if load_number(load) is not None else load


def setting_title(load: str, results: Sequence[PolicyResult], engine: str) -> str:
    """What one table shows: "1.2 × capacity, live engine, 3 rounds" and the like."""
    count = max(len(result.rounds) for result in results)
    if engine == VIRTUAL:
        repeats = "" if count == 1 else f", {count} seeds"
        return f"{load_title(load)}, virtual time{repeats}"
    return f"{load_title(load)}, live engine, {count} {'round' if count == 1 else 'rounds'}"


def broken_label(policy: str) -> str:
    """A policy's label with its options on lines of their own, where it is long."""
    if len(policy) <= 12:
        return policy
    return policy.replace(":", ":\n").replace(";", ";\n")


def headline(comparison: Comparison) -> str:
    """The run's result in one sentence: the best policy that does not know the lengths."""
    if comparison.baseline is None:
        return "No baseline: add fcfs to the policies for a comparison."
    chosen = _chosen(comparison)
    if chosen is None:
        return f"Only {comparison.baseline} ran: there is nothing to compare it with."
    latency = chosen.ratios.get("mean_e2el_ms")
    if latency is None:
        return f"No requests were completed under both {chosen.policy} and {comparison.baseline}."
    repeats = "seeds" if comparison.engine == VIRTUAL else "rounds"
    rounds = f", median of {len(chosen.rounds)} {repeats}" if len(chosen.rounds) > 1 else ""
    where = load_title(chosen.load)
    if comparison.engine == VIRTUAL:
        where += ", virtual time"
    if latency.median <= 1.0:
        return (
            f"{where}: no policy lowered the mean latency of {comparison.baseline} "
            f"(the best, {chosen.policy}: {factor(latency)}{rounds})."
        )
    sentence = f"{where}: {chosen.policy} has a {factor(latency)} lower mean latency"
    per_token = chosen.ratios.get("mean_latency_per_output_token_ms")
    if per_token is not None:
        sentence += f" and takes {factor(per_token)} less time per output token"
    sentence += f" than {comparison.baseline}{rounds}"
    tail = chosen.ratios.get("p99_e2el_ms")
    if tail is not None and tail.median > 0:
        sentence += (
            f"; its p99 latency is {1 / tail.median:.2f}{TIMES} that of {comparison.baseline}"
        )
    if chosen.gap_closed is not None:
        sentence += f"; it gets {percent(chosen.gap_closed)} of the oracle's gain"
    return sentence + "."


def _chosen(comparison: Comparison) -> PolicyResult | None:
    """The result to lead with: a load that needs no clock first, then the best mean latency."""
    candidates = [
        result
        for result in comparison.results
        if result.policy != comparison.baseline and not knows_lengths(result.policy)
    ]
    if not candidates:
        return None

    def order(result: PolicyResult) -> tuple[bool, float]:
        latency = result.ratios.get("mean_e2el_ms")
        return depends_on_clock(result.load), -latency.median if latency is not None else math.inf

    return min(candidates, key=order)


def method(engine: str, *, forward: bool = False) -> str:
    """A list in HTML for results of a kind of engine, see `RunInfo`."""
    if engine != VIRTUAL:
        return f"<ul>{_LIVE}{_BOTH}</ul>"
    return f"<ul>{_FORWARD if forward else _NO_FORWARD}{_IN_VIRTUAL_TIME}{_BOTH}</ul>"


_LIVE = """
<li><b>Same requests, same arrivals.</b> One server serves all rounds; the policy is switched
between rounds, while no request is in it. A policy's round is compared with the baseline's round
of the same load and repeat, and the factor is the median of those ratios, with the lowest and the
highest below it. Times are medians of the rounds' figures; counts are sums.</li>
<li><b>Machines drift.</b> Where requests arrive by the clock, a machine that slows down by 5 %
is under 5 % more load, and near capacity that alone can move latency by more than a policy does.
Bursts and closed loops do not depend on a clock, so they carry the comparison. For arrivals by
the clock, read the load really offered: the arriving work over the capacity that the engine showed
in that same round, from its own steps. Rounds are flagged where capacity moved by more than 10 %
against the run's median, where the load offered missed the one asked for by more than 10 %, where
the client fell behind, and where requests failed. Flagged rounds are shown and counted, not
dropped.</li>
<li><b>Latency</b> is measured at the client over streaming HTTP, from sending a request to its
last token; TTFT ends at the first. Latency per output token is a request's latency divided by its
answer's length, then averaged over requests, so short answers weigh as much as long ones. The
longest wait is the largest of all times to a first token and gaps between tokens. Percentiles and
keys follow <code>vllm bench serve</code>.</li>
"""

_NO_FORWARD = """
<li><b>What is real.</b> vLLM's own engine ran: its life cycle of requests, scheduler and KV-cache
manager, with Lengthwise's policies in it and the predictor on the real prompts. Every decision
was taken from what it would have been taken from on the GPU.</li>
<li><b>What is not.</b> There is no forward pass. A step takes as long as measured or derived costs
of the GPU say, on a clock that only steps and arrivals move; tokens have no meaning, and each
answer has the length that it was given. There is no HTTP, no front end and no network: their
constant cost is in no figure.</li>
<li><b>Exact.</b> The same command gives the same figures on any machine, so nothing is repeated
and nothing flagged.</li>
"""

_FORWARD = """
<li><b>What is real.</b> vLLM's own engine ran, with its worker: every token and hidden state was
computed by the model, and a probe, where there is one, read them. Every decision was taken from
what it would have been taken from on the GPU.</li>
<li><b>What is not.</b> The clock. A step takes as long as measured or derived costs of the GPU and
of the model named there say, not what the smaller model here would take. A probe's own time is not
in it, and neither are HTTP, the front end and the network.</li>
<li><b>Exact on one machine.</b> The same command gives the same figures there, so nothing is
repeated and nothing flagged. Another processor adds products up in another order, and an answer may
go on differently from there.</li>
"""

_IN_VIRTUAL_TIME = """
<li><b>Seeds.</b> Where several seeds ran, each is another draw of requests and arrivals; a
policy is compared with the baseline under the same seed, and the factor is the median of those
ratios, with the lowest and the highest below it.</li>
<li><b>Latency</b> is from a request's arrival to its last token; TTFT ends at the first. Latency
per output token is a request's latency divided by its answer's length, then averaged over
requests, so short answers weigh as much as long ones. The longest wait is the largest of all times
to a first token and gaps between tokens. Percentiles and keys follow
<code>vllm bench serve</code>.</li>
"""

_BOTH = """
<li><b>The oracle</b> knows every answer's true length beforehand. It cannot be deployed; it bounds
what a better predictor could add. Gap closed is (baseline − policy) / (baseline − oracle) on mean
latency, where the oracle gains more than 1 %.</li>
<li><b>Order is not speed.</b> The engine does the same work under each policy. Running short
answers first lowers the mean because fewer requests wait behind long ones; long answers may wait
longer, and p99 and the maximum show it. Without a queue there is nothing to reorder and nothing
to gain.</li>
"""


def comparison_table(comparison: Comparison) -> RenderableType:
    """The whole run for a terminal of 80 columns: a table for each load, then the result."""
    tables: list[RenderableType] = [
        _load_table(load, results, comparison) for load, results in comparison.by_load()
    ]
    rounds = comparison.rounds
    flagged = sum(bool(each.flags) for each in rounds)
    unit = "seed" if comparison.engine == VIRTUAL else "round"
    several = any(len(result.rounds) > 1 for result in comparison.results)
    note = f"End-to-end latency in s{f', medians of the {unit}s' if several else ''}."
    if comparison.baseline is not None:
        note += (
            f" factor: {comparison.baseline} / policy on the mean"
            f"{f', {unit} by {unit} (lowest to highest)' if several else ''}; gap: share of the "
            "oracle's gain."
        )
    if comparison.engine_note:
        note += f" {comparison.engine_note}"
    lines = [Text(note, style="dim")]
    if flagged:
        lines.append(Text(f"{flagged} of {len(rounds)} rounds are flagged (!):", style="yellow"))
        lines.extend(
            Text(f"  round {each.info.round} ({each.info.policy}): {'; '.join(each.flags)}")
            for each in rounds
            if each.flags
        )
    return Group(*tables, *lines, Text(headline(comparison), style="bold"))


def _load_table(load: str, results: list[PolicyResult], comparison: Comparison) -> Table:
    baseline = comparison.baseline
    table = Table(
        title=setting_title(load, results, comparison.engine),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    table.add_column("policy", overflow="fold", min_width=14)
    for name in ("mean", "p50", "p99", "max", "TTFT", "s/token"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("factor", justify="right", no_wrap=True)
    table.add_column("", justify="left", no_wrap=True)
    table.add_column("gap", justify="right", no_wrap=True)
    for result in results:
        figures = result.summary()
        ratio = result.ratios.get("mean_e2el_ms") if result.policy != baseline else None
        cells = [
            ("! " if result.flagged else "") + broken_label(result.policy),
            seconds(figures["mean_e2el_ms"]),
            seconds(figures["median_e2el_ms"]),
            seconds(figures["p99_e2el_ms"]),
            seconds(figures["max_e2el_ms"]),
            seconds(figures["mean_ttft_ms"]),
            seconds(figures["mean_latency_per_output_token_ms"]),
            factor(ratio)
            if ratio is not None
            else f"1{TIMES}"
            if result.policy == baseline
            else "",
            limits(ratio),
            percent(result.gap_closed),
        ]
        table.add_row(*cells)
    return table


def serving_result(
    figures: Summary, rounds: int = 1, rate: float | None = None, concurrency: int | None = None
) -> str:
    """One policy's figures in the 50-column layout that `vllm bench serve` prints.

    Its own sections come first, word for word; the sections that vLLM does not have follow.

    Args:
        figures: from `summarise` or `PolicyResult.summary`.
        rounds: how many rounds the figures come from.
        rate: requests per second asked for, where the load was one.
        concurrency: clients, in a closed loop.
    """
    lines = [
        _rule(" Serving Benchmark Result ", "="),
        _line("Successful requests:", figures["completed"]),
        _line("Failed requests:", figures["failed"]),
    ]
    if rounds > 1:
        lines.append(_line("Rounds (counts added up, else medians):", rounds))
    if concurrency is not None:
        lines.append(_line("Maximum request concurrency:", concurrency))
    if rate is not None:
        lines.append(_line("Request rate configured (RPS):", rate))
    lines += [
        _line("Benchmark duration (s):", figures["duration"]),
        _line("Total input tokens:", figures["total_input_tokens"]),
        _line("Total generated tokens:", figures["total_output_tokens"]),
        _line("Request throughput (req/s):", figures["request_throughput"]),
    ]
    if figures["request_goodput"] is not None:
        lines.append(_line("Request goodput (req/s):", figures["request_goodput"]))
    lines += [
        _line("Output token throughput (tok/s):", figures["output_throughput"]),
        _line("Peak output token throughput (tok/s):", figures["max_output_tokens_per_s"]),
        _line("Peak concurrent requests:", _float(figures["max_concurrent_requests"])),
        _line("Total token throughput (tok/s):", figures["total_token_throughput"]),
    ]
    for key, name, title in _SECTIONS:
        lines.append(_rule(title, "-"))
        for word, prefix in (("Mean", "mean"), ("Median", "median"), ("P99", "p99")):
            lines.append(_line(f"{word} {name} (ms):", figures[f"{prefix}_{key}_ms"]))
    lines += [
        _rule("Scheduling", "-"),
        _line("Longest wait for a token (ms):", figures["max_waiting_time_ms"]),
        _line("Preemptions:", figures["preemptions"]),
        _line("Overtakes:", figures["overtakes"]),
        "=" * _WIDTH,
    ]
    return "\n".join(lines)


def serving_results(comparison: Comparison, policy: str) -> str:
    """One policy at each of its loads, in the layout of `vllm bench serve`."""
    blocks = []
    for result in comparison.results:
        if result.policy != policy:
            continue
        kind, _, value = result.load.partition("=")
        block = serving_result(
            result.summary(),
            rounds=len(result.rounds),
            rate=float(value) if kind == "rate" else None,
            concurrency=int(value) if kind == "concurrency" else None,
        )
        blocks.append(f"{policy}, {load_title(result.load)}\n{block}")
    return "\n\n".join(blocks)


def _rule(title: str, character: str) -> str:
    return f"{title:{character}^{_WIDTH}}"


def _line(label: str, value: float | int | None) -> str:
    text = "n/a" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)
    return f"{label:<40} {text:<10}"


def _float(value: float | int | None) -> float | None:
    return None if value is None else float(value)
