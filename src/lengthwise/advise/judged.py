"""How good a candidate is beside fcfs.

All are simulated on the same arrivals, judged by caps and gain, and put in order.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.candidates import Candidate
from lengthwise.advise.cell import Cell, Figures, Workload
from lengthwise.advise.objectives import Cap, gain
from lengthwise.advise.sweep import run_sweep
from lengthwise.errors import LengthwiseError

MARGIN: Final = 0.01  #: of a cap, to spare on every seed

Stage = Callable[[str, int], None]
Done = Callable[[int], None]


@dataclass(frozen=True)
class Judged:
    """A candidate beside fcfs on the same arrivals.

    Attributes:
        candidate: which.
        figures: see `cell.summary`, one for each seed.
        fcfs: those of fcfs, one for each seed.
        gains: how many times better than fcfs on the objective, shape [seeds].
        measured: what each cap limits, in its unit, shape [seeds, caps]; without caps p99-e2el.
    """

    candidate: Candidate
    figures: list[Figures]
    fcfs: list[Figures]
    gains: NDArray[np.float64]
    measured: NDArray[np.float64]

    @property
    def gain(self) -> float:
        """Mean over the seeds."""
        return float(self.gains.mean())


@dataclass
class Player:
    """Plays candidates beside fcfs, and compares them."""

    base: Cell
    objective: str
    caps: tuple[Cap, ...]
    jobs: int | None
    stage: Stage
    done: Done
    simulations: int = 0
    baselines: dict[tuple[int, int], Figures] = field(default_factory=dict)

    def play(
        self, title: str, workload: Workload, some: Sequence[Candidate], seeds: Sequence[int]
    ) -> list[Judged]:
        """Simulate each with each seed; those whose worker died are left out."""
        names = [(len(workload.trace), seed) for seed in seeds]  # a stretch and the whole differ
        missing = [name for name in names if name not in self.baselines]
        asked = [(Candidate("fcfs"), seed) for _, seed in missing]
        asked += [(each, seed) for each in some for seed in seeds]
        cells = [
            replace(self.base, label=each.label, discipline=each.discipline, seed=seed)
            for each, seed in asked
        ]
        self.stage(title, len(cells))
        rows = run_sweep(cells, workload, jobs=self.jobs, done=self.done)
        self.simulations += len(cells)
        self.baselines.update(zip(missing, rows, strict=False))
        fcfs = [self.baselines[name] for name in names]
        for row in fcfs:
            if "error" in row:
                raise LengthwiseError(f"fcfs could not be simulated: {row['error']}")
        rows = rows[len(missing) :]
        groups = [rows[start : start + len(seeds)] for start in range(0, len(rows), len(seeds))]
        return [
            self._judge(each, group, fcfs)
            for each, group in zip(some, groups, strict=True)
            if not any("error" in row for row in group)
        ]

    def _judge(self, candidate: Candidate, rows: list[Figures], fcfs: list[Figures]) -> Judged:
        pairs = list(zip(rows, fcfs, strict=True))
        gains = np.array([gain(self.objective, row, base) for row, base in pairs])
        axes = self.caps or (Cap("p99-e2el", math.inf),)
        measured = np.array([[cap.measured(row, base) for cap in axes] for row, base in pairs])
        return Judged(candidate, rows, fcfs, gains, measured)

    def use(self, judged: Judged) -> float:
        """How much of its caps a candidate uses up, 1 for all, by the worst cap and seed."""
        limits = [cap.limit for cap in self.caps] or [math.inf]
        return float((judged.measured / limits).max())

    def passes(self, judged: Judged) -> bool:
        """Whether it betters fcfs and keeps the caps, with every seed."""
        return bool(judged.gains.min() > 1.0) and self.use(judged) <= 1.0 - MARGIN

    def best(self, some: Sequence[Judged], slack: float) -> list[Judged]:
        """Those within the caps times `slack` by their gain, then the others by their excess.

        Where gains are alike to the third digit the order given, from the simplest, remains.
        """
        return sorted(some, key=lambda each: (max(self.use(each), slack), -round(each.gain, 3)))

    def front(self, some: Sequence[Judged], chosen: Judged | None = None) -> list[Judged]:
        """The choice, and those that nothing betters both on the objective and the first cap.

        Steps of less than two per cent are left out.
        """
        front: list[Judged] = []
        for each in sorted(some, key=lambda each: (_first(each), -each.gain)):
            if each is chosen or not front or each.gain > 1.02 * max(seen.gain for seen in front):
                front.append(each)
        return front

    def why_none(self, fcfs: Judged, tried: Sequence[Judged]) -> str:
        """Why nothing but fcfs was left."""
        caps = " and ".join(map(str, self.caps))
        if self.use(fcfs) > 1.0:
            return f"no candidate keeps {caps}, and neither does fcfs"
        if not any(self.use(each) <= 1.0 - MARGIN for each in tried):
            return f"no other candidate keeps {caps}"
        within = f" within {caps}" if caps else ""
        return f"no candidate is better on {self.objective}{within}"


def _first(judged: Judged) -> float:
    """What the first cap limits."""
    return float(judged.measured[:, 0].mean())
