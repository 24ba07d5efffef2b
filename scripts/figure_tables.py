"""The exact tables, those of bench/figures, as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from lengthwise.measure.wording import load_title, seconds
from scripts.result_tables import Row, number, ratio, table


def comparison_table(kept: Row, loads: Sequence[str] | None = None) -> list[str]:
    """Policies at each load, or at some of them."""
    heads = (
        "load,policy,mean s,fcfs / policy,s/token,fcfs / policy,p50 s,p95 s,p99 s,max s,"
        "TTFT mean s,gap closed"
    )
    lines = [
        [
            load_title(str(row["load"])),
            f"`{row['policy']}`",
            seconds(row["mean_e2el_ms"]),
            ratio(row, "factor_mean_e2el"),
            seconds(row["mean_latency_per_output_token_ms"]),
            ratio(row, "factor_mean_latency_per_output_token"),
            *(seconds(row[f"{name}_e2el_ms"]) for name in ("median", "p95", "p99", "max")),
            seconds(row["mean_ttft_ms"]),
            number(row["gap_closed"], ".0%"),
        ]
        for row in kept["rows"]
        if loads is None or row["load"] in loads
    ]
    return [
        *table(heads.split(","), lines),
        "",
        f"{kept['requests']:,} requests on `{kept['served_by']}` with {kept['slots']} slots; "
        f"medians of {kept['draws']} draws of requests and arrivals, with the smallest and the "
        "largest.",
    ]


def simulated_table(kept: Row) -> list[str]:
    """Latencies beside those of fcfs: one row for each policy, load and so on."""
    rows = [row for row in kept["rows"] if row["policy"] != "fcfs"]
    told_apart = [name for name in ("workload", "load", "tau") if name in rows[0]]
    figures = {
        "fcfs / policy: mean": "mean_e2el",
        "s/token": "mean_latency_per_output_token",
        "TTFT": "mean_ttft",
        "p99": "p99_e2el",
    }
    lines = [
        [
            *(str(row[name]) for name in told_apart),
            f"`{row['policy']}`",
            seconds(row["mean_e2el_ms"]),
            *(ratio(row, f"factor_{name}") for name in figures.values()),
        ]
        for row in rows
    ]
    return table([*told_apart, "policy", "mean s", *figures], lines)


def starvation_table(kept: Row) -> list[str]:
    """Guards at each load: what they cost in the mean, and what they bound."""
    heads = (
        "load,guard,mean s,fcfs / guard: mean,p99,longest wait s,fcfs / guard: longest wait,"
        "overtaken at most,proved"
    )
    lines = [
        [
            row["load"],
            "fcfs itself" if row["policy"] == "fcfs" else row["policy"],
            seconds(row["mean_e2el_ms"]),
            ratio(row, "factor_mean_e2el"),
            ratio(row, "factor_p99_e2el"),
            seconds(row["max_max_waiting_time_ms"]),
            ratio(row, "factor_max_max_waiting_time"),
            f"{row['max_overtaken']:,}",
            "—" if row["bound"] is None else f"{row['bound']:,}",
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), lines)


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
    heads = (
        "preemption,freed KV,load,c,mean s,p95 s,p99 s,recomputed tokens,peak KV,mean / best fixed"
    )
    lines = [
        [
            row["preemption"],
            "kept" if row["prefix_caching"] else "lost",
            row["load"],
            f"{row['c']}" + " (best)" * row["best"],
            *(seconds(row[f"{name}_e2el_ms"]) for name in ("mean", "p95", "p99")),
            f"{row['recomputed_tokens']:,.0f}",
            number(row["peak_kv"], ".0%"),
            f"{row['against_best']:.3f} ± {row['interval']:.3f}",
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), lines)


def memory_grid_table(kept: Row) -> list[str]:
    """Sizes of memory: preemptions, and what looking ahead changes."""
    heads = (
        "policy,memory,points,preempted: fcfs,without,looking ahead,"
        "throughput: worst,median,best,mean latency: worst,median,best"
    )
    lines = [
        [
            f"`{row['policy']}`",
            number(row["share"], ".0%"),
            str(row["points"]),
            *(
                f"{row[name]:,}"
                for name in ("stock_preemptions", "twin_preemptions", "preemptions")
            ),
            *(
                f"{row[f'{name}{end}']:.3f}×"
                for name in ("throughput_gain", "mean_gain")
                for end in ("_worst", "", "_best")
            ),
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), lines)


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
    lines = [
        [
            row["workload"],
            f"`{row['policy']}`",
            f"{row['first_1000_s']:.1f}",
            f"{row['factor_first_1000']:.2f}×",
            f"{row['in_300_s']:,}",
            f"{row['factor_in_300']:.2f}×",
            paper(row),
        ]
        for row in kept["rows"]
    ]
    heads = "model,policy,1 000 answers after s,fcfs / policy,answers in 300 s,policy / fcfs"
    return table([*heads.split(","), "paper: 1 000 after s"], lines)


def paper(row: Row) -> str:
    """The paper's figure with ShareGPT's and with LMSYS's prompts."""
    values = [row["paper_sharegpt_s"], row["paper_lmsys_s"]]
    return " / ".join("—" if value is None else f"{value:g}" for value in values if any(values))


def trail_rates_table(kept: Row) -> list[str]:
    """E2E and TTFT at each rate: mean, median and tails."""
    names = ("mean", "median", "p95", "p99")
    heads = ["requests/s", "policy", *(f"E2E {name} s" for name in names)]
    heads += [*(f"TTFT {name} s" for name in names), "fcfs / policy: E2E mean", "TTFT mean"]
    lines = [
        [
            row["load"].removeprefix("rate="),
            f"`{row['policy']}`",
            *(seconds(row[f"{name}_{what}_ms"]) for what in ("e2el", "ttft") for name in names),
            ratio(row, "factor_mean_e2el"),
            ratio(row, "factor_mean_ttft"),
        ]
        for row in kept["rows"]
    ]
    return table(heads, lines)


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
    "bench": lambda kept: comparison_table(kept, ["burst"]),
    "above-capacity": lambda kept: comparison_table(kept, ["1.2"]),
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
