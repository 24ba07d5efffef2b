"""What was measured as Markdown tables, for each kind of result in docs/results/."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from lengthwise.measure.results import VIRTUAL
from lengthwise.measure.wording import change, load_title, seconds
from scripts.columns import BESIDE_FCFS, Row, cell, columns, ratio, table, tau

#: Tables with a row for each row that was measured.
COLUMNS = {
    "predictors": """
        answers of = {label} | kind = {kind} | loss = {loss} | tau (95 % interval) = {:tau} |
        floor = {floor:.2f} | reach for = {reach:.2f} | ceiling = {ceiling_tau:.2f} |
        80 % coverage = {coverage_80:.1%} | µs a prompt = {microseconds_p50:.0f} |
        p99 = {microseconds_p99:.0f} | µs per 100 tokens = {microseconds_per_100_tokens:.0f} |
        trained in = {training_seconds:.1f} s
    """,
    "attempts": """
        attempt = {attempt} | tau, valid = {tau:.3f} |
        gain (95 % interval) = {gain:+.3f} ({gain_low:+.3f} to {gain_high:+.3f})
    """,
    "overhead": """
        policy = `{policy}` | base class = `{base}` | vLLM policy = {vllm_policy} |
        waiting = {waiting:,} | stock µs = {stock_us:.0f} | ours µs = {ours_us:.0f} |
        added µs = {added_us:+.0f} | added = {added_percent:+.1f} %
    """,
    "tune": """
        trace = {trace} | load = {load} | slots = {slots} | objective = {objective} |
        caps = {caps} | chosen = `{chosen}` | gain = {chosen_gain:.3f}× |
        best of the grid = `{best_feasible}` | gain = {best_gain:.3f}× |
        share = {share_of_best:.1%} | seconds = {seconds_tune:.0f}
    """,
    "speed": """
        policy = `{policy}` | prefix caching = {caching} | requests = {requests:,} |
        seconds = {seconds:interval .2f} | requests/s = {requests_per_s:,.0f} |
        million tokens/s = {million_tokens_per_s:.0f} |
        compiling (cached) = {compile_seconds:.1f} s | compiling (first time) = {compiled} |
        peak memory = {peak_rss_mib:.0f} MiB
    """,
    "fidelity": """
        records = {records} | load = {load:load} | policy = `{policy}` |
        E2E mean = {e2el_mean:+.1%} | p99 = {e2el_p99:+.1%} | TTFT mean = {ttft_mean:+.1%} |
        p99 = {ttft_p99:+.1%} | TPOT mean = {tpot_mean:+.1%} |
        mean over fcfs: measured = {measured_mean:.3f} | simulated = {simulated_mean:.3f} |
        as a forecast: E2E mean = {forecast:+.0%}
    """,
    "probe": """
        model = {label} | layer = {layer} | bins = {count} {bins} |
        test answers = {test_requests:,} | prompt only = {mae_prompt_only:interval .1f} |
        prompt and age = {mae_reestimated:interval .1f} | raw = {mae_raw:interval .1f} |
        refined = {mae_refined:interval .1f} |
        prompt only / refined = {ratio_prompt_only:interval .2f} |
        prompt and age / refined = {ratio_reestimated:interval .2f} |
        raw / refined = {ratio_raw:interval .2f} |
        as published = {mae_published_filter:interval .1f} | 80 % holds = {coverage_80:plain .0%}
    """,
    "probe-layers": """
        model = {label} | layer = {layer}{chosen} | validation = {mae_valid:.1f} |
        test (95 % interval) = {mae_raw:interval .1f}
    """,
    "probe-ages": """
        model = {label} | age = {age_from}–{age_to} | tokens to come = {mean_remaining:.0f} |
        prompt only = {mae_prompt_only:.1f} | prompt and age = {mae_reestimated:.1f} |
        raw = {mae_raw:.1f} | refined = {mae_refined:.1f}
    """,
    "probe-intervals": """
        model = {label} | tokens between = {interval} | τ = {temper:g} | ε = {epsilon:g} |
        α = {correction:g} | s = {stretch:.2f} | raw = {mae_raw:.1f} | refined = {mae_refined:.1f}
    """,
    "probe-overhead": """
        steps between predictions = {interval} | batch = {batch} |
        stock µs a step = {stock_us:,.0f} | added µs = {added_us:+.0f} |
        added = {added_percent:+.1f} % | interquartile range µs = {spread_us:.0f}
    """,
    "drift": """
        answers of = {label} | load = {load} | tau drifted = {tau_drifted:interval .2f} |
        below the floor = {below_floor} of {seeds} | tau retrained = {tau_retrained:interval .2f} |
        mean / fcfs drifted = {drifted_over_fcfs:interval .2f} |
        mean / fcfs retrained = {retrained_over_fcfs:interval .2f}
    """,
    "versions": """
        vLLM = {ran_with} | passed = {passed:,} | failed = {failed:,} | skipped = {skipped:,}
    """,
    "scrape": """
        API servers = {api_servers} | engines = {engines} | page = {kib:.0f} KiB |
        scrape ms (p99) = {scrape_p50_ms:.1f} ({scrape_p99_ms:.1f}) |
        our part ms (p99) = {ours_p50_ms:.1f} ({ours_p99_ms:.1f}) |
        `/health` ms (p99) = {health_p50_ms:.1f} ({health_p99_ms:.1f})
    """,
    "predict-server": """
        prompts/s in batches = {prompts_per_s:,.0f} | then prompts/s one by one = {rate:,.0f} |
        p50 ms = {p50_ms:.1f} | p99 ms = {p99_ms:.1f} |
        `/health` ms (p99) = {health_p50_ms:.1f} ({health_p99_ms:.1f}) |
        cores that others kept busy = {others_cores_at_rate:.1f}
    """,
}
#: What a row of those tables has that was not measured, but follows.
MORE: dict[str, Callable[[Row], Row]] = {
    "tune": lambda row: {
        "trace": row["trace"].removesuffix(".parquet"),
        "load": "as recorded" if row["load"] == "trace" else row["load"],
        "caps": ", ".join(f"{metric} ≤ {limit:g}" for metric, limit in row["caps"].items()),
    },
    "speed": lambda row: {
        "caching": "on" if row["prefix_caching"] else "off",
        "million_tokens_per_s": row["sequence_steps_per_s"] / 1e6,
        "compiled": cell("{compile_seconds_uncached:.0f} s", row)
        if row.get("compile_seconds_uncached") is not None
        else "—",
    },
    "probe": lambda row: {
        "layer": ", ".join(map(str, row["layers"])),
        "count": len(row["edges"]) - 1,
    },
    "scrape": lambda row: {"kib": row["bytes"] / 1024},
}
#: Lists in a row, each of whose entries is a row of the table.
PARTS = {
    "probe-layers": "by_layer",
    "probe-ages": "by_age_decile",
    "probe-intervals": "by_interval",
}


def columns_table(name: str, kept: Row) -> list[str]:
    """A table of COLUMNS."""
    rows: list[Row] = kept["rows"]
    if name in PARTS:
        rows = [
            {
                **row,
                **each,
                "chosen": " (chosen)" * (row.get("layers") == [each.get("layer")]),
            }
            for row in rows
            for each in row[PARTS[name]]
        ]
    if name in MORE:
        rows = [{**row, **MORE[name](row)} for row in rows]
    return columns(COLUMNS[name], rows)


_COMPARED = f"""{BESIDE_FCFS} |
    p50 s = {{median_e2el_ms:seconds}} | p95 s = {{p95_e2el_ms:seconds}} |
    p99 s = {{p99_e2el_ms:seconds}} | max s = {{max_e2el_ms:seconds}} |
    gap closed = {{gap_closed:.0%}}
"""
_FIRST_LOOK = f"""{BESIDE_FCFS} |
    p50 s = {{median_e2el_ms:seconds}} | p99 s = {{p99_e2el_ms:seconds}} |
    gap closed = {{gap_closed:.0%}}
"""


def comparison_table(kept: Row) -> list[str]:
    """Policies at each load."""
    return [*columns(_COMPARED, kept["rows"]), "", rounds_of(kept)]


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
    rows = [
        row
        for row in kept["rows"]
        if row["load"] in ("burst", 1.2) and row["policy"] in ("fcfs", "srpt", "oracle")
    ]
    return [*columns(_FIRST_LOOK, rows), "", rounds_of(kept)]


def demo_gain(kept: Row) -> list[str]:
    """One sentence."""
    burst, above = (
        cell(
            "{factor_mean_e2el:ratio} lower and the time per output token "
            "{factor_mean_latency_per_output_token:ratio}",
            next(row for row in kept["rows"] if (row["load"], row["policy"]) == (load, "srpt")),
        )
        for load in ("burst", 1.2)
    )
    return [
        f"**{kept['requests']} real prompts with the answers' lengths of Vicuna-7B, served by vLLM "
        f"on {kept['server']['slots']} slots at the pace of an A100 with Llama-3-8B (virtual "
        f"time): all at once, mean latency is {burst}; at 1.2 × capacity {above}.**",
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


def transfer_table(kept: Row) -> list[str]:
    """A row for each source that was trained on, a column for each that was asked about."""
    sources = list(dict.fromkeys(row["trained_on"] for row in kept["rows"]))
    taus = {(row["trained_on"], row["tested_on"]): tau(row) for row in kept["rows"]}
    rows = [[learnt, *(taus.get((learnt, asked), "—") for asked in sources)] for learnt in sources]
    return table(["trained on ↓, tested on →", *sources], rows)


def across_table(kept: Row) -> list[str]:
    """A row for each predictor, a column for each data set that it was asked about."""
    return _taus_table("trained on = {trained_on}\nrows = {rows:,}", "tau, asked about", kept)


def across_summary(kept: Row) -> list[str]:
    """The predictor at hand, and those that were trained anew on the last data set."""
    last = list(kept["rows"][0]["taus"])[-1]
    first, *others = kept["rows"]
    return across_table({"rows": [first, *(row for row in others if row["trained_on"] == last)]})


def ablation_table(kept: Row) -> list[str]:
    """One row for each variant, with tau on each split."""
    spec = "ablation = {ablation}\nsetting = {setting}\nrows = {rows:,}"
    return _taus_table(spec, "tau,", kept)


def _taus_table(spec: str, heading: str, kept: Row) -> list[str]:
    """Some columns, and one for each of the taus in a row."""
    names = list(kept["rows"][0]["taus"])
    spec += "".join(f"\n{heading} {name} = {{tau{place}:tau}}" for place, name in enumerate(names))
    rows = [
        {**row, **{f"tau{place}": row["taus"][name] for place, name in enumerate(names)}}
        for row in kept["rows"]
    ]
    return columns(spec, rows)


def memory_table(kept: Row) -> list[str]:
    """The rows as they are."""
    rows = kept["rows"]
    return table(list(rows[0]), [[str(value) for value in row.values()] for row in rows])


def fidelity_table(kept: Row) -> list[str]:
    """One row for each folder, load and policy: the simulator's error, and a forecast's."""

    def place(row: Row) -> tuple[str, ...]:
        return row["folder"], row["load"], row["policy"]

    forecasts = {
        place(row): row["e2el"]["mean_error"] for row in kept["rows"] if row["speed"] == "fitted"
    }
    rows = [
        {
            **row,
            "records": Path(row["folder"]).name,
            **{
                f"{metric}_{what}": row[metric][f"{what}_error"]
                for metric in ("e2el", "ttft", "tpot")
                for what in ("mean", "p99")
            },
            **row.get("over_fcfs", {}).get("e2el", {}),
            "forecast": forecasts[place(row)],
        }
        for row in kept["rows"]
        if row["speed"] == "second"
    ]
    return columns(COLUMNS["fidelity"], rows)


def learning_table(kept: Row) -> list[str]:
    """One row for each figure: without learning, with it, and the paired ratio."""
    (run,) = kept["rows"]
    both = run["learning_over_quiet"]
    rows = [
        [
            label,
            *(cell(f"{{{name}:interval {form}}}", run[how]) for how in ("quiet", "learning")),
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
            cell(f"{{{name}_asked_ms:.2f}}", row),
            cell(f"{{{name}_ms:.2f}}", row),
            cell(f"{{{name}_error:plain +.1%}}", row),
        ]
        for row in kept["rows"]
        for name, what in names.items()
    ]
    constant = "`{preset}` {front_end_ms:.1f} ms, load average {load_average:.1f}"
    constants = "; ".join(cell(constant, row) for row in kept["rows"])
    return [
        *table(("emulated", "what", "asked, ms", "took, ms", "error"), lines),
        "",
        f"The constant of client, HTTP and front end, which is not in the TTFT above: {constants}.",
    ]


RESULT_TABLES: dict[str, Callable[[Row], list[str]]] = {
    **{name: partial(columns_table, name) for name in COLUMNS},
    "transfer": transfer_table,
    "across": across_table,
    "across-summary": across_summary,
    "ablation": ablation_table,
    "memory": memory_table,
    "learning": learning_table,
    "fidelity": fidelity_table,
    "emulated-server": emulated_server_table,
    "demo-summary": demo_summary,
    "demo-gain": demo_gain,
    "demo-live": demo_live_table,
}
