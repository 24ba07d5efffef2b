"""What pausing, and guards with it, were measured to bring, as Markdown tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from scripts.columns import Row, table

NAMES: Final = {
    "castillo": "Llama-3.1-8B, with runaways (CASTILLO)",
    "log-normal": "log-normal, σ 1.4",
    "vicuna": "Vicuna-7B",
    "azure-conversations": "Azure, conversations",
    "azure-code": "Azure, code",
}
FIGURES: Final = ("mean", "p99", "ttft", "longest_wait")
HEADS: Final = ("mean", "p99", "TTFT", "longest wait")


def pausing_summary(kept: Row) -> list[str]:
    """srpt that never preempts, and with pauses, where there is something to gain."""
    rows = []
    for load in (0.9, 1.15):
        for name in ("castillo", "log-normal", "vicuna"):
            rows.append([NAMES[name], str(load), *_pairs(kept, name, load, "ample")])
    return table(["lengths", "load", *HEADS], rows)


def guarded_table(kept: Row) -> list[str]:
    """The same for every kind of requests and memory."""
    rows = []
    for name, title in NAMES.items():
        for load in (0.9, 1.15):
            for memory in ("ample", "1.5", "1.0"):
                label = memory if memory == "ample" else f"{memory}×"
                rows.append([title, str(load), label, *_pairs(kept, name, load, memory)])
    return table(["lengths", "load", "KV", *HEADS], rows)


def _pairs(kept: Row, workload: str, load: float, memory: str) -> list[str]:
    """FIGURES of srpt, never preempting → pausing without a probe."""
    where = {"workload": workload, "load": load, "kv": memory}
    never = _one(kept["rows"], policy="srpt:preemption=never", **where)
    paused = _one(kept["rows"], policy="srpt", pausing=True, tau_probe=None, **where)
    return [f"{never[figure]:.2f} → {paused[figure]:.2f}×" for figure in FIGURES]


def pausing_table(kept: Row) -> list[str]:
    """srpt in all its forms, for every kind of requests and memory."""
    rows = []
    for row in kept["rows"]:
        if row["policy"].partition(":")[0] != "srpt":
            continue
        form = "never" if row["policy"].endswith("never") else "computes again"
        if row["pausing"]:
            form = "pauses, looks" if row["peek"] else "pauses"
            form += "" if row["tau_probe"] is None or row["peek"] else ", probe"
        rows.append(
            [
                NAMES[row["workload"]],
                str(row["load"]),
                row["kv"] if row["kv"] == "ample" else f"{row['kv']}×",
                form,
                *(f"{row[figure]:.2f}×" for figure in FIGURES),
                f"{row['swaps']:,.0f}",
                f"{row['recomputed_tokens']:,.0f}",
            ]
        )
    return table(["lengths", "load", "KV", "`srpt`", *HEADS, "swaps", "tokens again"], rows)


def offloading_table(kept: Row) -> list[str]:
    """A line for each policy and what is offloaded; without pausing, who makes way is preempted."""
    forms = {
        "srpt:preemption=never": "never",
        "srpt:pausing=false": "preempts where it pays",
        "srpt:pausing=false;preemption=greedy": "preempts greedily",
        "srpt": "pauses",
    }
    rows = [
        [
            NAMES[row["workload"]],
            "asynchronous" if row["asynchronous"] else "synchronous",
            forms[row["policy"]],
            row["kept"],
            *(f"{row[figure]:.3f}×" for figure in FIGURES),
            f"{row['pauses'] + row['preemptions']:,.0f}",
            f"{row['memory_preemptions']:,.0f}",
            f"{row['recomputed_tokens']:,.0f}",
        ]
        for row in kept["rows"]
        if row["policy"] in forms
    ]
    heads = ["lengths", "scheduling", "`srpt`", "offloaded", *HEADS]
    heads += ["swaps", "freed for memory", "tokens again"]
    return table(heads, rows)


def grid_table(kept: Row) -> list[str]:
    """A line for each batch and memory: the worst, the median and the best of its points."""
    rows = []
    for slots in (16, 64, 256):
        for memory in ("ample", "1.5", "1.0"):
            some = [row for row in kept["rows"] if (row["slots"], row["kv"]) == (slots, memory)]
            spreads = []
            for figure in FIGURES:
                values = sorted(row[figure] for row in some)
                middle = values[len(values) // 2]
                spreads.append(f"{middle:.2f} ({values[0]:.3f}–{values[-1]:.2f})")
            label = memory if memory == "ample" else f"{memory}×"
            rows.append([str(slots), label, str(len(some)), *spreads])
    return table(["slots", "KV", "points", *HEADS], rows)


def tried_table(kept: Row) -> list[str]:
    """A line for each rule; *kept* is the p99 over that of the twin that never preempts."""
    columns = (
        ("log-normal", 0.9, ("TTFT", "kept")),
        ("vicuna", 0.9, ("TTFT", "kept")),
        ("log-normal", 1.15, ("mean", "TTFT", "kept")),
        ("castillo", 1.15, ("mean", "TTFT", "p99")),
    )
    heads = [f"{NAMES[name]}, {load}: {', '.join(figures)}" for name, load, figures in columns]
    rows = []
    for label in dict.fromkeys(row["label"] for row in kept["rows"]):
        cells = []
        for name, load, figures in columns:
            where = {"label": label, "workload": name, "load": load}
            own = _one(kept["rows"], pausing=True, tau_probe=None, **where)
            twin = _one(kept["rows"], policy="srpt:preemption=never", **where)
            shown = {"mean": own["mean"], "TTFT": own["ttft"], "p99": own["p99"]}
            shown["kept"] = own["p99"] / twin["p99"]
            cells.append(", ".join(f"{shown[figure]:.2f}×" for figure in figures))
        rows.append([label, *cells])
    return table(["who makes way", *heads], rows)


def hindsight_table(kept: Row) -> list[str]:
    """A line for each guard, with pausing: mean, p99 and the longest wait of any request."""
    loads = ("burst", "1.2", "1.05")
    names = ("mean", "p99", "worst_wait")
    rows = []
    for guard in dict.fromkeys(row["guard"] for row in kept["rows"]):
        cells = []
        for load in loads:
            row = _one(kept["rows"], guard=guard, load=load, pausing=True)
            cells.append(", ".join(f"{row[name]:.2f}×" for name in names))
        rows.append([f"`{guard}`", *cells])
    return table(["guard", *(f"{load}: mean, p99, longest wait of all" for load in loads)], rows)


def _one(rows: Sequence[Mapping[str, Any]], **wanted: Any) -> Mapping[str, Any]:
    (found,) = (
        row for row in rows if all(row.get(name) == value for name, value in wanted.items())
    )
    return found


PAUSING_TABLES: Final[Mapping[str, Callable[[Row], list[str]]]] = {
    "pausing-summary": pausing_summary,
    "pausing-guarded": guarded_table,
    "pausing": pausing_table,
    "pausing-tried": tried_table,
    "offloading": offloading_table,
    "preemption-grid": grid_table,
    "guards-hindsight": hindsight_table,
}
