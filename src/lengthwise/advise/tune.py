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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lengthwise.advise.candidates import ORDERS, Candidate, orders, refinements
from lengthwise.advise.cell import Cell, Workload, arrivals_of
from lengthwise.advise.judged import Done, Judged, Player, Stage
from lengthwise.advise.objectives import Cap
from lengthwise.intervals import standard_error
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.simulation import simulate

FRESH_SEEDS: Final = 8
FRESH: Final = 1_000  #: where fresh seeds begin, counted from the seed that was given
NOTHING_TO_GAIN: Final = 0.01  #: a change of the objective below which order makes no difference

_STRETCH: Final = 20_000  # requests that a field is narrowed on: an hour at 5.5 a second
_SLACK: Final = 1.1  # times a cap there, since a stretch tells the tail of the whole roughly
_REFINED: Final = 8  # bounds that preempting policies are tried with
_KEPT: Final = 24  # candidates that are tried on the whole
_FINALISTS: Final = 4  # judged at once on fresh seeds, the most promising first
_BATCHES: Final = 3  # of finalists at most, until one passes


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
    player = Player(base, objective, tuple(caps), jobs, stage, done)
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
    least = best.gain - standard_error(best.gains)
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
