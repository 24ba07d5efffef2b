"""The numbers of docs/background/theory.md, computed when the docs are built; see docs_hooks.py.

Each public function gives a part of the page: a sentence, or the heads and the rows of a table.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from lengthwise.theory import (
    JobLaw,
    Simulation,
    exponential,
    lognormal,
    mean_response_time,
    mean_response_time_tagged_cutoff,
    noisily_predicted,
    perfectly_predicted,
    simulate,
)

Table = tuple[list[str], list[list[str]]]

JOBS = 500_000  # in each simulated cell
CUTOFFS = (0.0, 0.2, 0.5, 0.8, 1.0)
LOADS = (0.7, 0.9)
PREDICTED: dict[str, Callable[[], JobLaw]] = {
    "perfect": lambda: perfectly_predicted(exponential()),
    "exponential": lambda: noisily_predicted(exponential()),
}


class Cell(NamedTuple):
    """Formula and simulation of trail with exponential sizes."""

    mean: float
    simulation: Simulation

    @property
    def gap(self) -> float:
        """By how much they differ, as a share."""
        return abs(self.mean / self.simulation.mean_response_time - 1)


@functools.cache
def cells() -> dict[tuple[str, float, float], Cell]:
    """Every kind of predictions, load and cutoff."""
    found = {}
    for predictions, make in PREDICTED.items():
        jobs = make()
        for load in LOADS:
            for c in CUTOFFS:
                mean = mean_response_time(jobs, load, "trail", c)
                simulation = simulate(jobs, load, "trail", c, count=JOBS)
                found[predictions, load, c] = Cell(mean, simulation)
    return found


def policies() -> Table:
    """Mean response times of the policies, by size law and load."""
    rows = []
    for name, law in {"exponential": exponential(), "lognormal, σ = 1": lognormal(1.0)}.items():
        perfect, noisy = perfectly_predicted(law), noisily_predicted(law)
        columns = (
            ("fcfs", perfect),
            ("sjf", noisy),
            ("sjf", perfect),
            ("srpt", noisy),
            ("srpt", perfect),
        )
        for load in (0.5, 0.7, 0.9):
            means = [mean_response_time(jobs, load, policy) for policy, jobs in columns]
            rows.append([name, f"{load:g}", *(f"{mean:.3f}" for mean in means)])
    heads = ["sizes", "load", "fcfs", "sjf, noisy", "sjf, perfect", "srpt, noisy", "srpt, perfect"]
    return heads, rows


def agreement() -> Table:
    """Formula and simulation side by side."""
    rows = []
    for predictions in PREDICTED:
        for load in LOADS:
            row = [predictions, f"{load:g}"]
            for c in CUTOFFS:
                mean, run = cells()[predictions, load, c]
                margin = (run.high - run.low) / 2
                row.append(f"{mean:.4f}<br>{run.mean_response_time:.3f} ± {margin:.3f}")
            rows.append(row)
    return ["predictions", "load", *(f"c = {c:g}" for c in CUTOFFS)], rows


def agreement_in_words() -> str:
    """How well they agree."""
    inside = sum(
        cell.simulation.low <= cell.mean <= cell.simulation.high for cell in cells().values()
    )
    gaps = ", ".join(
        f"{percent(max(cell.gap for key, cell in cells().items() if key[1] == load), 1)} "
        f"at load {load:g}"
        for load in LOADS
    )
    return (
        f"Each simulated mean is of {JOBS:,} jobs, with its 99 % interval. The formula lies within "
        f"it in {inside} of {len(cells())} cells; the largest difference is {gaps}. Cells share "
        "their random arrivals, so they err together."
    )


def readings() -> Table:
    """Both readings of the lemma, perfect predictions."""
    few = perfectly_predicted(exponential(), limit=1024)
    rows = []
    for load in LOADS:
        for c in CUTOFFS[1:-1]:
            mean, run = cells()["perfect", load, c]
            tagged = mean_response_time_tagged_cutoff(few, load, c)
            rows.append(
                [
                    f"{load:g}",
                    f"{c:g}",
                    f"{run.mean_response_time:.3f}",
                    f"{mean:.4f}",
                    f"{tagged:.4f}",
                    f"+{percent(tagged / mean - 1, 1)}",
                ]
            )
    heads = ["load", "c", "simulated", "each job's own", "the tagged job's", "difference"]
    return heads, rows


def memory() -> Table:
    """What limiting preemption costs and saves at the highest load."""
    load = LOADS[-1]
    rows = []
    for predictions in PREDICTED:
        free = cells()[predictions, load, 1.0]
        for c in CUTOFFS:
            mean, run = cells()[predictions, load, c]
            age = run.mean_age_in_memory
            rows.append(
                [
                    predictions,
                    f"{c:g}",
                    f"{mean:.3f}",
                    percent(mean / free.mean - 1, 1),
                    f"{age:.2f}",
                    percent(age / free.simulation.mean_age_in_memory - 1),
                    f"{run.preemptions_per_job:.2f}",
                ]
            )
    heads = ["predictions", "c", "mean response time", "against c = 1"]
    return [*heads, "summed age in memory", "against c = 1", "preemptions a job"], rows


def memory_in_words() -> str:
    """Which cutoff has the lowest mean, and what a low one trades."""
    best = set()
    for predictions in PREDICTED:
        for load in LOADS:
            means = {c: cells()[predictions, load, c].mean for c in CUTOFFS}
            best.add(min(CUTOFFS, key=means.__getitem__))
    load = LOADS[-1]
    low, free = cells()["perfect", load, 0.2], cells()["perfect", load, 1.0]
    cost = low.mean / free.mean - 1
    saved = 1 - low.simulation.mean_age_in_memory / free.simulation.mean_age_in_memory
    return (
        f"The mean response time is lowest at c = {' or '.join(f'{c:g}' for c in sorted(best))} in "
        f"each case on this page. What a lower c buys is memory: with perfect predictions at load "
        f"{load:g}, c = 0.2 costs {percent(cost, 1)} of mean response time and saves "
        f"{percent(saved)} of the summed age."
    )


def percent(share: float, digits: int = 0) -> str:
    """A share in percent."""
    return f"{100 * share:.{digits}f} %".replace("-", "−")
