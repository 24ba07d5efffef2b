"""The policies and bounds that a tuner chooses from, and how good each is beside fcfs.

All are simulated on the same arrivals, judged by caps and gain, and put in order.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.cell import Cell, Figures, Workload
from lengthwise.advise.objectives import MAX_WAIT, Cap, gain
from lengthwise.advise.sweep import run_sweep
from lengthwise.errors import LengthwiseError

# How many may overtake, times slots, and for each that a request found waiting; and shares of
# admissions in policy order. From the tightest, since of two that are equally good the first is
# taken.
_OVERTAKES: Final = (
    *((0.5, 0.0), (1.0, 0.0), (2.0, 0.0)),
    *((1.0, 0.25), (1.0, 0.5), (1.0, 1.0)),
    *((5.0, 0.0), (20.0, 0.0)),
)
_LEADS: Final = (50.0, 110.0)  # mean requests that may be served before one beyond the queue
_BLENDS: Final = (1.0, 0.95, 0.9, 0.7, 0.5)

#: Orders that do not preempt, and their refinements that do. Of those alike one is enough: ltr
#: orders as sjf does, since an expected length grows with the score, and so does an srpt or a trail
#: that never preempts.
ORDERS: Final = ("sjf", "hrrn")
REFINEMENTS: Final[tuple[tuple[str, dict[str, float]], ...]] = (
    ("srpt", {}),
    ("trail", {"c": 0.2}),
    ("trail", {"c": 0.5}),
    ("trail", {"c": 0.8}),
)
#: The same where whoever makes way keeps its KV, with bounds on its stall, s, the tightest first;
#: with a probe, also with looks at requests before their turn.
PAUSING: Final[tuple[tuple[str, dict[str, float]], ...]] = (("srpt", {}), ("gittins", {}))
_STALLS_S: Final = (2.0, 10.0)
MARGIN: Final = 0.01  #: of a cap, to spare on every fresh seed

Stage = Callable[[str, int], None]
Done = Callable[[int], None]


@dataclass(frozen=True)
class Candidate:
    """Something to choose.

    Attributes:
        policy: its name.
        parameters: of the policy.
        guards: the other arguments of `make_discipline` that are not the defaults.
    """

    policy: str
    parameters: dict[str, float] = field(default_factory=dict)
    guards: dict[str, Any] = field(default_factory=dict)

    @property
    def discipline(self) -> dict[str, Any]:
        """The arguments of `make_discipline`, which are settings of `serve` too."""
        return {"policy": self.policy, "parameters": self.parameters, **self.guards}

    @property
    def label(self) -> str:
        """As `lengthwise simulate --policy` takes it."""
        options = {**self.parameters, **self.guards}.items()
        shown = ";".join(f"{name}={str(value).lower()}" for name, value in options)
        return f"{self.policy}:{shown}" if shown else self.policy


def orders(slots: int, caps: Sequence[Cap] = ()) -> Iterator[Candidate]:
    """Every order with every bound, the simplest and tightest first.

    Args:
        slots: of the engine, in which bounds on overtaking are counted.
        caps: one on waiting adds a bound on waiting, at half of it.
    """
    bounds: list[dict[str, Any]] = [
        {"max_overtakes": max(1, int(times * slots))} | ({"overtake_share": share} if share else {})
        for times, share in _OVERTAKES
    ]
    bounds += [{"max_lead": lead} for lead in _LEADS]
    bounds += [{"max_wait_s": 0.5 * cap.limit} for cap in caps if cap.metric == MAX_WAIT]
    for policy, bound, blend in itertools.product(ORDERS, (*bounds, {}), _BLENDS):
        yield Candidate(policy, {}, bound | ({"blend": blend} if blend < 1.0 else {}))


def refinements(
    bounds: Iterable[dict[str, Any]], pauses: bool = False, looks: bool = False
) -> Iterator[Candidate]:
    """Every preempting policy with each of these bounds.

    Args:
        bounds: arguments of `make_discipline`.
        pauses: there are places for paused requests.
        looks: there is a probe, which reads prompts before their turn.
    """
    bounds = list(bounds)
    for guards, (policy, parameters) in itertools.product(bounds, REFINEMENTS):
        yield Candidate(policy, parameters, guards)
    if not pauses:
        return
    peeks: tuple[dict[str, Any], ...] = ({}, {"peek": True}) if looks else ({},)
    for guards, (policy, parameters), stall_s, peek in itertools.product(
        bounds, PAUSING, _STALLS_S, peeks
    ):
        pausing = {"pausing": True, "max_stall_s": stall_s, **peek}
        yield Candidate(policy, parameters, {**guards, **pausing})


def grid(
    slots: int, caps: Sequence[Cap] = (), pauses: bool = False, looks: bool = False
) -> Iterator[Candidate]:
    """Every policy with every bound, for an exhaustive search."""
    found = list(orders(slots, caps))
    yield from found
    bounds = (each.guards for each in found if each.policy == ORDERS[0])
    yield from refinements(bounds, pauses, looks)


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
