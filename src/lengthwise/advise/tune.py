"""Choose a policy and its bounds for a workload, by simulation.

The field is narrowed in rungs, each dearer per candidate than the last (as in successive halving,
Jamieson and Talwalkar, AISTATS 2016, arXiv 1502.07943): every bound under orders that never
preempt; the bounds that did best under those that do, with recompute and with pauses; of a long
trace up to here only the stretch with the most waiting; then the better ones on the whole of it;
and the best are judged on seeds that chose nothing, since the seeds that did flatter what they
chose.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from lengthwise.advise.candidates import ORDERS, Candidate, orders, refinements
from lengthwise.advise.cell import Cell, Figures, Workload, arrivals_of
from lengthwise.advise.objectives import Cap, gain
from lengthwise.advise.sweep import run_sweep
from lengthwise.errors import LengthwiseError
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.simulation import simulate

MARGIN: Final = 0.01  #: of a cap, to spare on every fresh seed
FRESH_SEEDS: Final = 8
FRESH: Final = 1_000  #: where fresh seeds begin, counted from the seed that was given
NOTHING_TO_GAIN: Final = 0.01  #: a change of the objective below which order makes no difference

_STRETCH: Final = 20_000  # requests that a field is narrowed on: an hour at 5.5 a second
_SLACK: Final = 1.1  # times a cap there, since a stretch tells the tail of the whole roughly
_REFINED: Final = 8  # bounds that preempting policies are tried with
_KEPT: Final = 24  # candidates that are tried on the whole
_FINALISTS: Final = 4  # judged at once on fresh seeds, the most promising first
_BATCHES: Final = 3  # of finalists at most, until one passes

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


@dataclass(frozen=True)
class Tuning:
    """What was chosen, and why.

    Attributes:
        chosen: the choice, on fresh seeds unless it is fcfs.
        reason: in a clause, why nothing but fcfs was left; else empty.
        ideal: shortest first with true lengths and without bounds, for comparison.
        front: the choice, fcfs, and what was tried on the whole workload and is bettered by none
            both on the objective and on the first cap (p99-e2el without one); by that cap.
        finalists: what was judged on fresh seeds.
        simulations: how many it took.
    """

    chosen: Judged
    reason: str
    ideal: Judged
    front: list[Judged]
    finalists: list[Judged]
    simulations: int


def tune(
    workload: Workload,
    base: Cell,
    objective: str,
    caps: Sequence[Cap],
    *,
    jobs: int | None = None,
    stage: Stage = lambda title, total: None,
    done: Done = lambda finished: None,
) -> Tuning:
    """Choose what gains most on the objective within the caps.

    A choice must better fcfs, and keep all caps with a MARGIN to spare, on each of FRESH_SEEDS
    seeds that took no part in finding it. Of those within a standard error of the best the simplest
    with the tightest bounds is taken.

    Args:
        workload: the requests.
        base: engine, costs, load, predictor, service-level objectives and seed; its discipline is
            replaced.
        objective: one of OBJECTIVES.
        caps: what must be kept.
        jobs: processes at once; None for one a core.
        stage: told what begins, and how many simulations it takes.
        done: told how many of them are behind.

    Raises:
        InputError: something cannot be simulated; see `simulate`.
        LengthwiseError: fcfs could not be simulated.
    """
    if math.isfinite(workload.trace.rate):
        # Once, since a stretch has another rate than the whole.
        workload = Workload(arrivals_of(base, workload.trace), workload.predictions)
        base = replace(base, load="trace")
    player = _Player(base, objective, tuple(caps), jobs, stage, done)
    seed = (base.seed,)
    fcfs, ideal = player.play(
        "simulating fcfs and true lengths",
        workload,
        [Candidate("fcfs"), Candidate("oracle-sjf")],
        seed,
    )
    if abs(ideal.gain - 1.0) < NOTHING_TO_GAIN:
        reason = (
            "there is nothing to gain: even with true lengths, shortest first changes "
            f"{objective} by {abs(ideal.gain - 1.0):.1%}, as hardly anything queues"
        )
        return Tuning(fcfs, reason, ideal, [fcfs], [], player.simulations)

    part = _stretch(workload, base)
    plain = list(orders(base.engine.slots, caps))
    tried = player.play("trying bounds", part, plain, seed)
    pauses, looks = base.engine.places > base.engine.slots, base.probe is not None
    refined = list(_refinements(player.best(tried, _SLACK), pauses, looks))
    tried += player.play("trying preemption", part, refined, seed)
    if part is not workload:
        kept = player.best(tried, _SLACK)[:_KEPT] + player.front(tried)
        labels = {each.candidate.label for each in kept}
        some = [each for each in (*plain, *refined) if each.label in labels]
        tried = player.play("trying the better ones on the whole", workload, some, seed)

    finalists: list[Judged] = []
    passed: list[Judged] = []
    promising = [each for each in _distinct(player.best(tried, 1.0)) if player.passes(each)]
    for batch in range(0, min(len(promising), _BATCHES * _FINALISTS), _FINALISTS):
        some = [each.candidate for each in promising[batch : batch + _FINALISTS]]
        finalists += player.play("judging on fresh seeds", workload, some, _fresh(base, workload))
        passed = [each for each in finalists if player.passes(each)]
        if passed:
            break
    order = [each.label for each in (*plain, *refined)]
    chosen = _choose(passed, order) or fcfs
    reason = "" if passed else player.why_none(fcfs, tried)
    judged = {each.candidate.label: each for each in (*tried, *finalists)}
    front = player.front([fcfs, *judged.values()], chosen)
    return Tuning(chosen, reason, ideal, front, finalists, player.simulations)


def interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """The 95 % interval of a mean by Student's t; None for fewer than two values."""
    if len(values) < 2:
        return None
    half = float(stdtrit(len(values) - 1, 0.975)) * _standard_error(values)
    return float(values.mean()) - half, float(values.mean()) + half


@dataclass
class _Player:
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


def _refinements(best: Sequence[Judged], pauses: bool, looks: bool) -> Iterator[Candidate]:
    """Preempting policies, with the bounds under which shortest first did best."""
    shortest = [each for each in best if each.candidate.policy == ORDERS[0]]
    bounds = (each.candidate.guards for each in _distinct(shortest)[:_REFINED])
    yield from refinements(bounds, pauses, looks)


def _choose(passed: Sequence[Judged], order: Sequence[str]) -> Judged | None:
    """Of those within a standard error of the best, the first in order."""
    best = max(passed, key=lambda each: each.gain, default=None)
    if best is None:
        return None
    least = best.gain - _standard_error(best.gains)
    good = [each for each in passed if each.gain >= least]
    return min(good, key=lambda each: order.index(each.candidate.label))


def _distinct(some: Sequence[Judged]) -> list[Judged]:
    """The first of those that are alike, in the order given."""
    found: dict[tuple[float, ...], Judged] = {}
    for each in some:
        measured = each.measured.mean(axis=0).round(2)
        found.setdefault((round(each.gain, 3), *measured), each)
    return list(found.values())


def _fresh(base: Cell, workload: Workload) -> range:
    """Seeds that nothing was chosen on; one is enough where nothing is drawn."""
    drawn = str(base.predictor).startswith("noisy-oracle") or (
        base.load not in ("trace", "burst") and not math.isfinite(workload.trace.rate)
    )
    return range(base.seed + FRESH, base.seed + FRESH + (FRESH_SEEDS if drawn else 1))


def _stretch(workload: Workload, base: Cell) -> Workload:
    """The stretch of so many requests that wait longest under fcfs; all where there are few."""
    trace = workload.trace
    if len(trace) <= _STRETCH or not math.isfinite(trace.rate):
        return workload
    served = simulate(trace, make_discipline("fcfs"), base.cost, base.engine).requests
    waited = np.concatenate([[0.0], np.cumsum(served["scheduled_s"] - served["arrival_s"])])
    start = int(np.argmax(waited[_STRETCH:] - waited[:-_STRETCH]))
    first, last = trace.arrival_s[[start, min(start + _STRETCH, len(trace) - 1)]]
    if first == last:  # they arrive at once: a part would be another load
        return workload
    rows = slice(*np.searchsorted(trace.arrival_s, [first, last]))
    predictions = workload.predictions
    return Workload(trace.between(first, last), None if predictions is None else predictions[rows])


def _first(judged: Judged) -> float:
    """What the first cap limits."""
    return float(judged.measured[:, 0].mean())


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
