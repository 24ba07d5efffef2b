"""How figures and loads are written for people, the same in the terminal and in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lengthwise.measure.comparison import (
    Comparison,
    PolicyResult,
    Spread,
    depends_on_clock,
    knows_lengths,
    load_number,
)
from lengthwise.measure.run_info import VIRTUAL

TIMES = "\N{MULTIPLICATION SIGN}"
DASH = "\N{EN DASH}"
NOTHING = "\N{EM DASH}"


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
