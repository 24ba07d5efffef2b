"""What was measured as Markdown tables: one function for each kind of result in docs/results/."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lengthwise.measure.run_info import VIRTUAL
from lengthwise.measure.wording import change, load_title, seconds

Row = Mapping[str, Any]


def comparison_table(kept: Row) -> list[str]:
    """Policies at each load."""
    heads = (
        "load,policy,mean s,fcfs / policy,s/token,fcfs / policy,p50 s,p95 s,p99 s,max s,gap closed"
    )
    rows = [
        [
            load_title(str(row["load"])),
            f"`{row['policy']}`",
            seconds(row["mean_e2el_ms"]),
            ratio(row, "factor_mean_e2el"),
            seconds(row["mean_latency_per_output_token_ms"]),
            ratio(row, "factor_mean_latency_per_output_token"),
            *(seconds(row[f"{name}_e2el_ms"]) for name in ("median", "p95", "p99", "max")),
            number(row["gap_closed"], ".0%"),
        ]
        for row in kept["rows"]
    ]
    return [*table(heads.split(","), rows), "", rounds_of(kept)]


def rounds_of(kept: Row) -> str:
    """How many requests and rounds there were, and what to know of them."""
    if all(row.get("engine") == VIRTUAL for row in kept["rows"]):
        note = f" {kept['engine_note']}" if kept.get("engine_note") else ""
        return f"{kept['requests']:,} requests a round, in virtual time.{note}"
    return (
        f"{kept['requests']} requests a round; {kept['rounds']} rounds, {kept['flagged']} of them "
        f"flagged.{offered_loads(kept['rows'])}"
    )


def demo_summary(kept: Row) -> list[str]:
    """What a first look at the demo needs."""
    heads = "load,policy,mean s,fcfs / policy,s/token,fcfs / policy,p50 s,p99 s,gap closed"
    rows = [
        [
            load_title(str(row["load"])),
            f"`{row['policy']}`",
            seconds(row["mean_e2el_ms"]),
            ratio(row, "factor_mean_e2el"),
            seconds(row["mean_latency_per_output_token_ms"]),
            ratio(row, "factor_mean_latency_per_output_token"),
            seconds(row["median_e2el_ms"]),
            seconds(row["p99_e2el_ms"]),
            number(row["gap_closed"], ".0%"),
        ]
        for row in kept["rows"]
        if row["load"] in ("burst", 1.2) and row["policy"] in ("fcfs", "srpt", "oracle")
    ]
    return [*table(heads.split(","), rows), "", rounds_of(kept)]


def demo_gain(kept: Row) -> list[str]:
    """One sentence."""
    burst, above = (
        next(row for row in kept["rows"] if (row["load"], row["policy"]) == (load, "srpt"))
        for load in ("burst", 1.2)
    )

    def gain(row: Row) -> str:
        return (
            f"{ratio(row, 'factor_mean_e2el')} lower and the time per output token "
            f"{ratio(row, 'factor_mean_latency_per_output_token')}"
        )

    return [
        f"**{kept['requests']} real prompts with the answers' lengths of Vicuna-7B, served by vLLM "
        f"on {kept['server']['slots']} slots at the pace of an A100 with Llama-3-8B (virtual "
        "time): all at once, mean latency is "
        f"{gain(burst)}; at 1.2 × capacity {gain(above)}.**",
    ]


def demo_live_table(kept: Row) -> list[str]:
    """Live and virtual figures of a burst, and how far they are apart."""
    names = {
        "mean s": "mean_e2el",
        "p50 s": "median_e2el",
        "p99 s": "p99_e2el",
        "mean TTFT s": "mean_ttft",
        "s/token": "mean_latency_per_output_token",
    }
    rows = []
    for row in kept["twins"]:
        figures = [seconds(row[f"{name}_ms"]) for name in names.values()]
        rows.append([f"`{row['policy']}`", row["engine"], *figures, ratio(row, "factor_mean_e2el")])
    for row in kept["twins"]:
        if row["engine"] != VIRTUAL:
            apart = [change(row[f"difference_{name}"]) for name in names.values()]
            rows.append([f"`{row['policy']}`", "difference", *apart, ""])
    rows.sort(key=lambda row: row[0])
    remarks = [
        f"`{row['policy']}`, live: {remark}."
        for row in kept["twins"]
        for remark in row.get("remarks", ())
    ]
    title = load_title(str(kept["twins"][0]["load"]))
    return [
        *table(["policy", "engine", *names, "fcfs / policy"], rows),
        "",
        f"{title}. {' '.join(remarks)}",
    ]


def offered_loads(rows: Sequence[Row]) -> str:
    """The loads really offered, one sentence."""
    offered: dict[object, list[float]] = {}
    for row in rows:
        if row["offered_load"] is not None:
            offered.setdefault(row["load"], []).append(row["offered_load"])
    parts = [
        f"{min(values):.2f}–{max(values):.2f} for {load} (medians of the policies)"
        for load, values in offered.items()
    ]
    return f" Load really offered: {', '.join(parts)}." if parts else ""


def predictor_table(kept: Row) -> list[str]:
    """One row for each evaluated predictor, with the bar for its tau where it has one."""
    heads = (
        "answers of,kind,loss,tau (95 % interval),floor,reach for,ceiling,"
        "80 % coverage,µs a prompt,p99,µs per 100 tokens,trained in"
    )
    rows = [
        [
            row["label"],
            row["kind"],
            row["loss"] or "—",
            tau_of(row),
            number(row["floor"], ".2f"),
            number(row["reach"], ".2f"),
            number(row["ceiling_tau"], ".2f"),
            number(row["coverage_80"], ".1%"),
            number(row["microseconds_p50"], ".0f"),
            number(row["microseconds_p99"], ".0f"),
            number(row.get("microseconds_per_100_tokens"), ".0f"),
            f"{row['training_seconds']:.1f} s",
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), rows)


def predictor_summary(kept: Row) -> list[str]:
    """The default predictor on each model's answers."""
    heads = "answers of,tau (95 % interval),tau of prompt length,ceiling,80 % coverage,µs a prompt"
    rows = [
        [
            row["label"],
            tau_of(row),
            number(row["prompt_length_tau"], ".2f"),
            number(row["ceiling_tau"], ".2f"),
            number(row["coverage_80"], ".0%"),
            number(row["microseconds_p50"], ".0f"),
        ]
        for row in kept["rows"]
        if row["floor"] is not None
    ]
    return table(heads.split(","), rows)


def transfer_table(kept: Row) -> list[str]:
    """A row for each source that was trained on, a column for each that was asked about."""
    sources = list(dict.fromkeys(row["trained_on"] for row in kept["rows"]))
    pairs = {(row["trained_on"], row["tested_on"]): row for row in kept["rows"]}
    rows = [
        [
            learnt,
            *(
                tau_of(pairs[learnt, asked]) if (learnt, asked) in pairs else "—"
                for asked in sources
            ),
        ]
        for learnt in sources
    ]
    return table(["trained on ↓, tested on →", *sources], rows)


def across_table(kept: Row) -> list[str]:
    """A row for each predictor, a column for each data set that it was asked about."""
    sets = list(kept["rows"][0]["taus"])
    rows = [
        [row["trained_on"], f"{row['rows']:,}", *(tau_of(row["taus"][name]) for name in sets)]
        for row in kept["rows"]
    ]
    return table(["trained on", "rows", *(f"tau, asked about {name}" for name in sets)], rows)


def across_summary(kept: Row) -> list[str]:
    """The predictor at hand, and those that were trained anew on the last data set."""
    last = list(kept["rows"][0]["taus"])[-1]
    first, *others = kept["rows"]
    return across_table({"rows": [first, *(row for row in others if row["trained_on"] == last)]})


def attempts_table(kept: Row) -> list[str]:
    """What was tried, what it gave on validation rows, and how sure that is."""
    rows = [
        [
            row["attempt"],
            f"{row['tau']:.3f}",
            f"{row['gain']:+.3f} ({row['gain_low']:+.3f} to {row['gain_high']:+.3f})",
        ]
        for row in kept["rows"]
    ]
    return table(["attempt", "tau, valid", "gain (95 % interval)"], rows)


def ablation_table(kept: Row) -> list[str]:
    """One row for each variant, with tau on each split."""
    variants = kept["rows"]
    splits = list(variants[0]["taus"])
    rows = [
        [
            row["ablation"],
            row["setting"],
            f"{row['rows']:,}",
            *(tau_of(row["taus"][split]) for split in splits),
        ]
        for row in variants
    ]
    heads = ["ablation", "setting", "rows", *(f"tau, {split}" for split in splits)]
    return table(heads, rows)


def tau_of(row: Row) -> str:
    """0.524 (0.502–0.543): a tau with its interval."""
    if row["tau"] is None:
        return "—"
    return f"{row['tau']:.3f} ({row['tau_low']:.3f}–{row['tau_high']:.3f})"


def overhead_table(kept: Row) -> list[str]:
    """One row for each policy and queue length."""
    heads = "policy,base class,vLLM policy,waiting,stock µs,ours µs,added µs,added"
    rows = [
        [
            f"`{row['policy']}`",
            f"`{row['base']}`",
            row["vllm_policy"],
            f"{row['waiting']:,}",
            number(row["stock_us"], ".0f"),
            number(row["ours_us"], ".0f"),
            number(row["added_us"], "+.0f"),
            f"{row['added_percent']:+.1f} %",
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), rows)


def overhead_summary(kept: Row) -> list[str]:
    """One row for each policy, one column for each queue length: added µs and share."""
    queues = sorted({row["waiting"] for row in kept["rows"]})
    rows = []
    for policy in dict.fromkeys(row["policy"] for row in kept["rows"]):
        cells = [f"`{policy}`"]
        for waiting in queues:
            group = [
                row for row in kept["rows"] if (row["policy"], row["waiting"]) == (policy, waiting)
            ]
            added = [row["added_us"] for row in group]
            share = [row["added_percent"] for row in group]
            cells.append(f"{min(added):.0f}–{max(added):.0f} µs, {max(share):.0f} %")
        rows.append(cells)
    return table(["policy", *(f"{waiting:,} waiting" for waiting in queues)], rows)


def memory_table(kept: Row) -> list[str]:
    """The rows as they are."""
    rows = kept["rows"]
    return table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def speed_table(kept: Row) -> list[str]:
    """One row for each policy."""
    heads = (
        "policy,prefix caching,requests,seconds,requests/s,million tokens/s,"
        "compiling (cached),compiling (first time),peak memory"
    )
    rows = [
        [
            f"`{row['policy']}`",
            "on" if row["prefix_caching"] else "off",
            f"{row['requests']:,}",
            f"{row['seconds']:.2f} ({row['seconds_low']:.2f}–{row['seconds_high']:.2f})",
            f"{row['requests_per_s']:,.0f}",
            f"{row['sequence_steps_per_s'] / 1e6:.0f}",
            f"{row['compile_seconds']:.1f} s",
            "—"
            if row.get("compile_seconds_uncached") is None
            else f"{row['compile_seconds_uncached']:.0f} s",
            f"{row['peak_rss_mib']:.0f} MiB",
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), rows)


def tune_table(kept: Row) -> list[str]:
    """One row for each question that the tuner was asked."""
    heads = "trace,load,slots,objective,caps,chosen,gain,best of the grid,gain,share,seconds"
    rows = [
        [
            row["trace"].removesuffix(".parquet"),
            "as recorded" if row["load"] == "trace" else row["load"],
            str(row["slots"]),
            row["objective"],
            ", ".join(f"{metric} ≤ {limit:g}" for metric, limit in row["caps"].items()),
            f"`{row['chosen']}`",
            f"{row['chosen_gain']:.3f}×",
            f"`{row['best_feasible']}`",
            f"{row['best_gain']:.3f}×",
            f"{row['share_of_best']:.1%}".replace("%", " %"),
            f"{row['seconds_tune']:.0f}",
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), rows)


def fidelity_table(kept: Row) -> list[str]:
    """One row for each folder, load and policy: the simulator's error, and a forecast's."""
    heads = (
        "records,load,policy,E2E mean,p99,TTFT mean,p99,TPOT mean,"
        "mean over fcfs: measured,simulated,as a forecast: E2E mean"
    )
    forecasts = {
        (row["folder"], row["load"], row["policy"]): row["e2el"]["mean_error"]
        for row in kept["rows"]
        if row["speed"] == "fitted"
    }
    rows = []
    for row in kept["rows"]:
        if row["speed"] != "second":
            continue
        errors = [
            row[metric][f"{what}_error"]
            for metric, what in (
                ("e2el", "mean"),
                ("e2el", "p99"),
                ("ttft", "mean"),
                ("ttft", "p99"),
                ("tpot", "mean"),
            )
        ]
        over = row.get("over_fcfs", {}).get("e2el", {})
        rows.append(
            [
                Path(row["folder"]).name,
                load_title(row["load"]),
                f"`{row['policy']}`",
                *(number(error, "+.1%") for error in errors),
                number(over.get("measured_mean"), ".3f"),
                number(over.get("simulated_mean"), ".3f"),
                number(forecasts[row["folder"], row["load"], row["policy"]], "+.0%"),
            ]
        )
    return table(heads.split(","), rows)


METHODS = {
    "prompt_only": "prompt only",
    "reestimated": "prompt and age",
    "raw": "raw",
    "refined": "refined",
}


def probe_table(kept: Row) -> list[str]:
    """One row for each probe: errors in tokens, and how many times smaller the refined one is."""
    heads = (
        "model,layer,bins,test answers,prompt only,prompt and age,raw,refined,"
        "prompt only / refined,prompt and age / refined,raw / refined,as published,80 % holds"
    )
    rows = [
        [
            row["label"],
            ", ".join(map(str, row["layers"])),
            f"{len(row['edges']) - 1} {row['bins']}",
            f"{row['test_requests']:,}",
            *(interval(row, f"mae_{name}", ".1f") for name in METHODS),
            *(interval(row, f"ratio_{name}", ".2f") for name in list(METHODS)[:-1]),
            interval(row, "mae_published_filter", ".1f"),
            f"{row['coverage_80']:.0%}",
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), rows)


def probe_summary(kept: Row) -> list[str]:
    """One row for each probe: the errors that matter, and how many times smaller the last is."""
    heads = (
        "answers of,from the prompt,from prompt and age,probe as published,probe,"
        "prompt / probe,prompt and age / probe"
    )
    rows = [
        [
            row["label"],
            f"{row['mae_prompt_only']:.1f}",
            f"{row['mae_reestimated']:.1f}",
            f"{row['mae_published_filter']:.1f}",
            interval(row, "mae_refined", ".1f"),
            f"{interval(row, 'ratio_prompt_only', '.2f')}",
            f"{interval(row, 'ratio_reestimated', '.2f')}",
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), rows)


def probe_layer_table(kept: Row) -> list[str]:
    """One row for each layer of each probe."""
    rows = [
        [
            row["label"],
            f"{each['layer']}" + " (chosen)" * (row["layers"] == [each["layer"]]),
            f"{each['mae_valid']:.1f}",
            interval(each, "mae_raw", ".1f"),
        ]
        for row in kept["rows"]
        for each in row["by_layer"]
    ]
    return table(["model", "layer", "validation", "test (95 % interval)"], rows)


def probe_age_table(kept: Row) -> list[str]:
    """One row for each tenth of each probe's test tokens."""
    rows = [
        [
            row["label"],
            f"{each['age_from']}–{each['age_to']}",
            f"{each['mean_remaining']:.0f}",
            *(f"{each[f'mae_{name}']:.1f}" for name in METHODS),
        ]
        for row in kept["rows"]
        for each in row["by_age_decile"]
    ]
    return table(["model", "age", "tokens to come", *METHODS.values()], rows)


def probe_interval_table(kept: Row) -> list[str]:
    """One row for each interval of each probe."""
    rows = [
        [
            row["label"],
            str(each["interval"]),
            f"{each['temper']:g}",
            f"{each['epsilon']:g}",
            f"{each['correction']:g}",
            f"{each['stretch']:.2f}",
            f"{each['mae_raw']:.1f}",
            f"{each['mae_refined']:.1f}",
        ]
        for row in kept["rows"]
        for each in row["by_interval"]
    ]
    return table(["model", "tokens between", "τ", "ε", "α", "s", "raw", "refined"], rows)


def probe_overhead_table(kept: Row) -> list[str]:
    """One row for each interval."""
    rows = [
        [
            str(row["interval"]),
            str(row["batch"]),
            number(row["stock_us"], ",.0f"),
            number(row["added_us"], "+.0f"),
            f"{row['added_percent']:+.1f} %",
            number(row["spread_us"], ".0f"),
        ]
        for row in kept["rows"]
    ]
    heads = "steps between predictions,batch,stock µs a step,added µs,added,interquartile range µs"
    return table(heads.split(","), rows)


def learning_table(kept: Row) -> list[str]:
    """One row for each figure: without learning, with it, and the paired ratio."""
    (run,) = kept["rows"]
    quiet, busy, both = run["quiet"], run["learning"], run["learning_over_quiet"]
    rows = [
        [
            label,
            interval(quiet, name, form),
            interval(busy, name, form),
            ratio(both, name) if name in both else "",
        ]
        for label, name, form in (
            ("median step, ms", "p50_step_ms", ".1f"),
            ("p99 step, ms", "p99_step_ms", ".1f"),
            ("mean latency, ms", "mean_e2el_ms", ",.0f"),
            ("p99 latency, ms", "p99_e2el_ms", ",.0f"),
            ("predictors placed", "placed", ".0f"),
            ("failed requests", "failed", ".0f"),
        )
    ]
    return [
        *table(["", "no learning", "learning", "ratio"], rows),
        "",
        f"{run['requests']} requests a round at {run['load']} of the capacity; a predictor learns "
        f"from {run['taught']:,} answers once in {run['every']:,} requests; "
        f"{run['rounds']} rounds.",
    ]


def drift_table(kept: Row) -> list[str]:
    """One row for each model and load."""
    heads = (
        "answers of,load,tau drifted,below the floor,tau retrained,mean / fcfs drifted,"
        "mean / fcfs retrained"
    )
    rows = [
        [
            row["label"],
            row["load"],
            interval(row, "tau_drifted", ".2f"),
            f"{row['below_floor']} of {row['seeds']}",
            interval(row, "tau_retrained", ".2f"),
            interval(row, "drifted_over_fcfs", ".2f"),
            interval(row, "retrained_over_fcfs", ".2f"),
        ]
        for row in kept["rows"]
    ]
    return table(heads.split(","), rows)


def emulated_server_table(kept: Row) -> list[str]:
    """Asked and took of each figure."""
    names = {
        "step": "median step, 64 requests decode",
        "tpot": "TPOT over 256 tokens, by the client",
        "ttft": "TTFT of a prompt of 2,048 tokens, by the client",
    }
    lines = [
        [
            f"`{row['preset']}`",
            what,
            f"{row[f'{name}_asked_ms']:.2f}",
            f"{row[f'{name}_ms']:.2f}",
            f"{row[f'{name}_error']:+.1%}",
        ]
        for row in kept["rows"]
        for name, what in names.items()
    ]
    constants = "; ".join(
        f"`{row['preset']}` {row['front_end_ms']:.1f} ms, load average {row['load_average']:.1f}"
        for row in kept["rows"]
    )
    return [
        *table(("emulated", "what", "asked, ms", "took, ms", "error"), lines),
        "",
        f"The constant of client, HTTP and front end, which is not in the TTFT above: {constants}.",
    ]


TABLES: dict[str, Callable[[Row], list[str]]] = {
    "predictors": predictor_table,
    "predictors-summary": predictor_summary,
    "transfer": transfer_table,
    "across": across_table,
    "across-summary": across_summary,
    "attempts": attempts_table,
    "ablation": ablation_table,
    "overhead": overhead_table,
    "overhead-summary": overhead_summary,
    "memory": memory_table,
    "speed": speed_table,
    "tune": tune_table,
    "learning": learning_table,
    "drift": drift_table,
    "fidelity": fidelity_table,
    "probe": probe_table,
    "probe-summary": probe_summary,
    "probe-layers": probe_layer_table,
    "probe-ages": probe_age_table,
    "probe-intervals": probe_interval_table,
    "probe-overhead": probe_overhead_table,
    "emulated-server": emulated_server_table,
    "demo-summary": demo_summary,
    "demo-gain": demo_gain,
    "demo-live": demo_live_table,
}


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, numbers to the right of their column's name."""
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


def ratio(row: Row, name: str) -> str:
    """1.45× (1.41–1.50): the median, the smallest and the largest of the repeats."""
    median, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if median is None:
        return "—"
    return f"{median:.2f}×" + (f" ({low:.2f}–{high:.2f})" if low < high else "")


def interval(row: Row, name: str, form: str) -> str:
    """37.0 (35.1–39.2): a figure and the ends of its interval."""
    return f"{row[name]:{form}} ({row[f'{name}_low']:{form}}–{row[f'{name}_high']:{form}})"


def number(value: float | None, form: str) -> str:
    """A number, or a dash where there is none."""
    return "—" if value is None else format(value, form).replace("%", " %")
