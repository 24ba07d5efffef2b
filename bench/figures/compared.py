"""Rows of a table: medians over draws of requests, beside first come, first served."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any, Final

Row = dict[str, Any]

#: Figures in ms, and so many times lower than those of fcfs, `factor_<name without _ms>`.
LATENCIES: Final = (
    "mean_e2el_ms",
    "median_e2el_ms",
    "p95_e2el_ms",
    "p99_e2el_ms",
    "max_e2el_ms",
    "mean_ttft_ms",
    "median_ttft_ms",
    "p95_ttft_ms",
    "p99_ttft_ms",
    "mean_latency_per_output_token_ms",
    "p90_latency_per_output_token_ms",
    "max_waiting_time_ms",
)
COUNTS: Final = ("preemptions", "memory_preemptions", "recomputed_tokens", "max_overtaken")
_LEAST_GAIN: Final = 0.02  # of an oracle: a share of less than that says nothing


def against_fcfs(*names: str) -> Callable[[Sequence[Row]], list[Row]]:
    """Rows by policy and by these tags, each compared with fcfs under the same load and draw."""
    return partial(_against_fcfs, names)


def _against_fcfs(names: Sequence[str], cells: Sequence[Row]) -> list[Row]:
    shared = [name for name in ("workload", "load", "seed") if name in cells[0]]
    base = {_key(cell, shared): cell for cell in cells if cell["policy"] == "fcfs"}
    best = {_key(cell, shared): cell for cell in cells if cell["policy"] == "oracle"}
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for cell in cells:
        groups.setdefault(_key(cell, ("policy", *names)), []).append(cell)
    found = []
    for key, group in groups.items():
        row: Row = dict(zip(("policy", *names), key, strict=True))
        row["draws"] = len(group)
        others = [base[_key(cell, shared)] for cell in group]
        for name in LATENCIES:
            if name not in group[0]:
                continue
            row[name] = round(median(cell[name] for cell in group), 3)
            ratios = [other[name] / cell[name] for cell, other in zip(group, others, strict=True)]
            row |= spread(f"factor_{name.removesuffix('_ms')}", ratios)
        for name in COUNTS:
            row[name] = median(cell[name] for cell in group)
        row["max_overtaken"] = max(cell["max_overtaken"] for cell in group)
        oracles = [best.get(_key(cell, shared)) for cell in group]
        row |= _gap_closed(group, others, oracles)
        found.append(row)
    return found


def _key(row: Row, names: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row.get(name) for name in names)


def _gap_closed(cells: Sequence[Row], others: Sequence[Row], oracles: Sequence[Row | None]) -> Row:
    """The share of the oracle's gain in the mean; None where the oracle gains next to nothing."""
    shares = []
    for cell, other, oracle in zip(cells, others, oracles, strict=True):
        before = other["mean_e2el_ms"]
        gain = 0.0 if oracle is None else before - oracle["mean_e2el_ms"]
        if gain < _LEAST_GAIN * before:
            return {"gap_closed": None, "gap_closed_low": None, "gap_closed_high": None}
        shares.append((before - cell["mean_e2el_ms"]) / gain)
    return spread("gap_closed", shares)


def spread(name: str, values: Sequence[float]) -> Row:
    """A figure's median, smallest and largest."""
    shown = [round(value, 5) for value in (median(values), min(values), max(values))]
    return dict(zip((name, f"{name}_low", f"{name}_high"), shown, strict=True))
