"""The exact tables, those of bench/figures, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lengthwise.measure.wording import seconds
from scripts.columns import BESIDE_FCFS, Row, columns, ratio, table

_COMPARED = f"""{BESIDE_FCFS} |
    p50 s = {{median_e2el_ms:seconds}} | p95 s = {{p95_e2el_ms:seconds}} |
    p99 s = {{p99_e2el_ms:seconds}} | max s = {{max_e2el_ms:seconds}} |
    TTFT mean s = {{mean_ttft_ms:seconds}} | gap closed = {{gap_closed:.0%}}
"""


def comparison_table(kept: Row) -> list[str]:
    """Policies at each load."""
    return [
        *columns(_COMPARED, kept["rows"]),
        "",
        f"{kept['requests']:,} requests on `{kept['served_by']}` with {kept['slots']} slots; "
        f"medians of {kept['draws']} draws of requests and arrivals, with the smallest and the "
        "largest.",
    ]


def simulated_table(kept: Row) -> list[str]:
    """Latencies beside those of fcfs: one row for each policy, load and so on."""
    rows = [row for row in kept["rows"] if row["policy"] != "fcfs"]
    told_apart = [name for name in ("workload", "load", "tau") if name in rows[0]]
    spec = """
        policy = `{policy}` | mean s = {mean_e2el_ms:seconds} |
        fcfs / policy: mean = {factor_mean_e2el:ratio} |
        s/token = {factor_mean_latency_per_output_token:ratio} | TTFT = {factor_mean_ttft:ratio} |
        p99 = {factor_p99_e2el:ratio}
    """
    return columns("".join(f"{name} = {{{name}}} | " for name in told_apart) + spec, rows)


def starvation_table(kept: Row) -> list[str]:
    """Guards at each load: what they cost in the mean, and what they bound."""
    spec = """ | load = {load} | guard = {guard} | mean s = {mean_e2el_ms:seconds} |
    fcfs / guard: mean = {factor_mean_e2el:ratio} | p99 = {factor_p99_e2el:ratio} |
    longest wait s = {max_waiting_time_ms:seconds} |
    fcfs / guard: longest wait = {factor_max_waiting_time:ratio} |
    overtaken at most = {max_overtaken:,} | proved = {bound:,}
    """
    rows = [
        {**row, "guard": "fcfs itself" if row["policy"] == "fcfs" else row["policy"]}
        for row in kept["rows"]
    ]
    return columns(spec, rows)


def preemption_table(kept: Row) -> list[str]:
    """For each policy, memory and number of slots: the spread over loads, tails and taus."""
    heads = "policy,KV memory,slots,points,mean: worst,median,best,TTFT: worst,median,best"
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in kept["rows"]:
        groups.setdefault((row["policy"], row["memory"], row["slots"]), []).append(row)
    lines = []
    for (policy, memory, slots), group in groups.items():
        cells = [f"`{policy}`", str(memory), str(slots), str(len(group))]
        for name in ("e2el_gain", "ttft_gain"):
            gains = sorted(row[name] for row in group)
            cells += [f"{gains[0]:.3f}×", f"{gains[len(gains) // 2]:.3f}×", f"{gains[-1]:.3f}×"]
        lines.append(cells)
    return table(heads.split(","), sorted(lines, key=lambda cells: (*cells[:2], int(cells[2]))))


def cutoff_table(kept: Row) -> list[str]:
    """One row for each situation and c."""
    spec = """ | preemption = {preemption} | freed KV = {freed} | load = {load} | c = {c}{best} |
    mean s = {mean_e2el_ms:seconds} | p95 s = {p95_e2el_ms:seconds} |
    p99 s = {p99_e2el_ms:seconds} | recomputed tokens = {recomputed_tokens:,.0f} |
    peak KV = {peak_kv:.0%} | mean / best fixed = {against_best:.3f} ± {interval:.3f}
    """
    rows = [
        {
            **row,
            "freed": "kept" if row["prefix_caching"] else "lost",
            "best": " (best)" * row["best"],
        }
        for row in kept["rows"]
    ]
    return columns(spec, rows)


def memory_grid_table(kept: Row) -> list[str]:
    """Sizes of memory: preemptions, and what looking ahead changes."""
    spec = """ | policy = `{policy}` | memory = {share:.0%} | points = {points} |
    preempted: fcfs = {stock_preemptions:,} | without = {twin_preemptions:,} |
    looking ahead = {preemptions:,} | throughput: worst = {throughput_gain_worst:.3f}× |
    median = {throughput_gain:.3f}× | best = {throughput_gain_best:.3f}× |
    mean latency: worst = {mean_gain_worst:.3f}× | median = {mean_gain:.3f}× |
    best = {mean_gain_best:.3f}×
    """
    return columns(spec, kept["rows"])


def ltr_rates_table(kept: Row) -> list[str]:
    """Seconds per output token: a row for each model and load, the paper's beside ours."""
    policies = list(dict.fromkeys(row["policy"] for row in kept["rows"]))
    groups: dict[tuple[str, str], dict[str, Row]] = {}
    for row in kept["rows"]:
        groups.setdefault((row["workload"], row["load"]), {})[row["policy"]] = row
    lines = [
        [
            model,
            load.removeprefix("rate="),
            *(seconds(by[policy]["mean_latency_per_output_token_ms"]) for policy in policies),
            ratio(by["ltr"], "factor_mean_latency_per_output_token"),
            ratio(by["ltr"], "factor_mean_e2el"),
            *(paper(by[policy]) for policy in ("fcfs", "mlfq", "ltr", "oracle")),
        ]
        for (model, load), by in groups.items()
    ]
    heads = ["model", "requests/s", *(f"`{policy}`" for policy in policies)]
    heads += ["fcfs / ltr", "fcfs / ltr: mean latency"]
    return table([*heads, "paper: FCFS", "MLFQ", "LTR", "optimal"], lines)


def ltr_synthetic_table(kept: Row) -> list[str]:
    """The first 1,000 answers, and those of five minutes."""
    spec = """ | model = {workload} | policy = `{policy}` |
    1 000 answers after s = {first_1000_s:.1f} | fcfs / policy = {factor_first_1000:.2f}× |
    answers in 300 s = {in_300_s:,} | policy / fcfs = {factor_in_300:.2f}× |
    paper: 1 000 after s = {paper}
    """
    return columns(spec, [{**row, "paper": paper(row)} for row in kept["rows"]])


def paper(row: Row) -> str:
    """The paper's figure with ShareGPT's and with LMSYS's prompts."""
    values = [row["paper_sharegpt_s"], row["paper_lmsys_s"]]
    return " / ".join("—" if value is None else f"{value:g}" for value in values if any(values))


def trail_rates_table(kept: Row) -> list[str]:
    """E2E and TTFT at each rate: mean, median and tails."""
    spec = "\n".join(
        [
            "requests/s = {rate}",
            "policy = `{policy}`",
            *(
                f"{what} {name} s = {{{name}_{key}_ms:seconds}}"
                for what, key in (("E2E", "e2el"), ("TTFT", "ttft"))
                for name in ("mean", "median", "p95", "p99")
            ),
            "fcfs / policy: E2E mean = {factor_mean_e2el:ratio}",
            "TTFT mean = {factor_mean_ttft:ratio}",
        ]
    )
    return columns(
        spec, [{**row, "rate": row["load"].removeprefix("rate=")} for row in kept["rows"]]
    )


def exact_caption(kept: Row) -> str:
    """How to make the table again, and what vLLM said to it."""
    data = f" on {' and '.join(kept['data'])}" if kept["data"] else ""
    trained = ", whose train rows the predictor learns from"
    checked = kept["checked"]
    vllm = next(iter(kept["versions"].values()), "")
    return (
        f"`{kept['command']}`{data}{trained if kept['trained'] else ''}. Engine: simulated, exact; "
        f"in virtual time vLLM {vllm} served each of the {checked['requests']:,} requests of the "
        f"cell *{checked['cell']}* at the same times, within {checked['within_s']:g} s."
    )


FIGURE_TABLES: Mapping[str, Callable[[Row], list[str]]] = {
    "comparison": comparison_table,
    "comparison-256": comparison_table,
    "guards": comparison_table,
    "starvation": starvation_table,
    "preemption": preemption_table,
    "cutoff": cutoff_table,
    "memory-grid": memory_grid_table,
    "doubt": simulated_table,
    "published": simulated_table,
    "tau": simulated_table,
    "service-time": simulated_table,
    "ltr-rates": ltr_rates_table,
    "ltr-synthetic": ltr_synthetic_table,
    "trail-rates": trail_rates_table,
}
