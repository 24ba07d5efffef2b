"""What to make better and what must not get worse, as figures of a simulation beside fcfs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from lengthwise.advise.cell import Figures
from lengthwise.errors import InputError, unknown_name

#: Latencies by the names that users write, and the keys of `cell.summary`; lower is better.
LATENCIES: Final = {
    "mean-e2el": "mean_e2el_ms",
    "p50-e2el": "median_e2el_ms",
    "p95-e2el": "p95_e2el_ms",
    "p99-e2el": "p99_e2el_ms",
    "max-e2el": "max_e2el_ms",
    "mean-ttft": "mean_ttft_ms",
    "p50-ttft": "median_ttft_ms",
    "p99-ttft": "p99_ttft_ms",
    "max-ttft": "max_ttft_ms",
    "mean-tpot": "mean_tpot_ms",
    "p99-tpot": "p99_tpot_ms",
    "mean-latency-per-output-token": "mean_latency_per_output_token_ms",
    "p99-latency-per-output-token": "p99_latency_per_output_token_ms",
}

GOODPUT: Final = "goodput"
OBJECTIVES: Final = (
    "mean-e2el",
    "p50-e2el",
    "mean-latency-per-output-token",
    "mean-ttft",
    "p99-ttft",
    GOODPUT,
)

MAX_WAIT: Final = "max-wait-s"


def require_objective(name: str) -> str:
    """The name, if it is one of OBJECTIVES.

    Raises:
        InputError: it is none; the message lists them.
    """
    if name not in OBJECTIVES:
        raise unknown_name("objective", name, OBJECTIVES)
    return name


def gain(objective: str, figures: Figures, fcfs: Figures) -> float:
    """How many times better than fcfs: fcfs / policy for latencies, policy / fcfs for goodput.

    Goodput counts as one request where there was none, so that the quotient exists.
    """
    if objective == GOODPUT:
        ours, theirs = (
            max(each["request_goodput"], 1.0 / each["duration"]) for each in (figures, fcfs)
        )
        return float(ours / theirs)
    return 1.0 / times_fcfs(objective, figures, fcfs)


def times_fcfs(metric: str, figures: Figures, fcfs: Figures) -> float:
    """A latency as a multiple of that under fcfs; 1 where neither has it."""
    ours, theirs = figures.get(LATENCIES[metric]), fcfs.get(LATENCIES[metric])
    return float(ours / theirs) if ours and theirs else 1.0


@dataclass(frozen=True)
class Cap:
    """What a figure may be at most.

    Attributes:
        metric: one of LATENCIES, for which the limit is a multiple of that under fcfs on the same
            arrivals; or MAX_WAIT, the longest that any request waits for its first or its next
            token, for which the limit is in s.
        limit: above 0.
    """

    metric: str
    limit: float

    def measured(self, figures: Figures, fcfs: Figures) -> float:
        """What the limit limits, in its unit."""
        if self.metric == MAX_WAIT:
            return float(figures["max_waiting_time_ms"]) / 1000.0
        return times_fcfs(self.metric, figures, fcfs)

    def __str__(self) -> str:
        """As in a sentence: p99-e2el ≤ 1.1 × fcfs."""
        unit = " s" if self.metric == MAX_WAIT else " × fcfs"
        return f"{self.metric.removesuffix('-s')} ≤ {self.limit:g}{unit}"


def parse_caps(texts: Iterable[str]) -> list[Cap]:
    """Caps as users write them: `p99-e2el=1.1` or `max-wait-s=30`.

    Raises:
        InputError: an unknown metric (the message lists them), one given twice, or a limit that is
            not above 0.
    """
    caps: dict[str, Cap] = {}
    for text in texts:
        metric, separator, value = text.partition("=")
        if metric not in (*LATENCIES, MAX_WAIT):
            raise unknown_name("cap", metric, (*LATENCIES, MAX_WAIT))
        try:
            limit = float(value)
        except ValueError:
            limit = math.nan
        if not separator or not (math.isfinite(limit) and limit > 0.0):
            meaning = "seconds" if metric == MAX_WAIT else "times the figure of fcfs"
            raise InputError(
                f"--cap {text}: give a number above 0, in {meaning}, such as "
                f"{metric}={30 if metric == MAX_WAIT else 1.1}"
            )
        if metric in caps:
            raise InputError(f"--cap {metric} was given twice: give each once")
        caps[metric] = Cap(metric, limit)
    return list(caps.values())
