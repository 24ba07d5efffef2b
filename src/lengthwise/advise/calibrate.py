"""Fit step costs to what a real engine recorded.

What is fitted to is a round of a benchmark as a simulation of it needs it. Of time it says two
things: the wall clock of a machine whose speed varies, against the work that its engine does, and
the time between client and engine.

`StepCost.linear`, a curve over the tokens of a step, is to a fit by least squares a ramp between
each two bends.

The costs are found by non-negative least squares (Lawson and Hanson, 1974) of the steps' durations
on their work. A step's duration is the time until the next one began, so it contains all that the
engine does between. Where a curve over the tokens describes steps that the fit has not seen clearly
better than a straight line does, it is fitted with the rest: on a GPU a few tokens more cost
nothing until computing takes longer than reading the weights.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lengthwise.errors import InputError
from lengthwise.intervals import draws
from lengthwise.measure.metrics import request_metrics
from lengthwise.measure.results import Records, RoundInfo
from lengthwise.policy.discipline import Discipline
from lengthwise.simulate.engine import WORK, EngineSettings, StepCost

Floats = NDArray[np.float64]

FEWEST_STEPS: Final = 200
OUTLIER: Final = 5.0  #: a step that took so many times what the others let expect is left out

#: The costs of a step: the constant, then one for each kind of WORK.
TERMS: Final = ("step_s", "prefill_s", "decode_s", "kv_s", "request_s", "attention_s")

_BUSY: Final = 0.2  # share of a stretch that the engine must have worked to tell its speed
_AFTERWARDS_S: Final = 1e7  # the last stretch goes on for so long
_FEWEST: Final = 50  # steps between two bends, to tell a slope from noise
_FACTOR: Final = 1.4  # at least, from one bend to the next
_SHARED: Final = 0.99  # of a term's variance explained by the terms before it: not told apart
_CLEARLY: Final = 0.9  # of a straight line's error at unseen steps: a curve must be nearer
_EXACT: Final = 1e-3  # a relative error that leaves nothing to explain
_PASSES: Final = 10
_DRAWS: Final = 500


def timed_steps(seconds: Floats, lag: int) -> NDArray[np.bool_]:
    """Which durations are those of some work; after the other steps the engine idled.

    Args:
        seconds: of each step, NaN where unknown; shape [steps].
        lag: of the engine, see `timed_work`: a step after one of unknown duration tells nothing.
    """
    timed: NDArray[np.bool_] = np.isfinite(seconds)
    if lag:
        timed[1:] &= np.isfinite(seconds[:-1])
        timed[:1] = False
    return timed


def timed_work(work: Floats, lag: int) -> Floats:
    """The work whose duration each step's is, shape [steps, kinds].

    That is the step's own or, with asynchronous scheduling, that of the one before: the next step
    is planned as soon as the one before is done.

    Args:
        work: of each step, shape [steps, kinds].
        lag: of the engine, see `EngineSettings`.
    """
    return np.roll(work, lag, axis=0)


@dataclass(frozen=True)
class MeasuredRound:
    """What was measured, under what, and what the engine did.

    Attributes:
        info: which round.
        records: its requests as the client saw them; n of them.
        steps: the engine's steps as columns: `t` and `duration_s` (s; NaN where it idled), and
            WORK. What was not recorded is NaN.
        engine: its limits.
        discipline: what decided who ran.
        predictions: shape [n, 5] as `simulate` takes them, NaN for a request without.
        arrival_s: shape [n], when each request was in the engine's queue, on the clock of `t`; NaN
            where that was not recorded.
    """

    info: RoundInfo
    records: Records
    steps: Mapping[str, Floats]
    engine: EngineSettings
    discipline: Discipline
    predictions: Floats
    arrival_s: Floats

    @property
    def name(self) -> str:
        """The round in a few words."""
        return f"round {self.info.round} ({self.info.policy}, load {self.info.load})"

    @property
    def timed(self) -> NDArray[np.bool_]:
        """Shape [steps]: those whose duration is that of some `work`.

        Raises:
            InputError: a step took less than no time.
        """
        durations = self.steps["duration_s"]
        if (durations < 0).any():
            step = int(np.argmax(durations < 0))
            raise InputError(
                f"{self.name}: step {step + 1} took {durations[step]:g} s: its record is damaged; "
                "run `lengthwise bench` again"
            )
        return timed_steps(durations, self.engine.lag)

    @property
    def work(self) -> Floats:
        """What the engine did in each step's duration, shape [steps, 5] in the order of WORK.

        What was not recorded is NaN.
        """
        work = np.stack([self.steps[name] for name in WORK], axis=1)
        return timed_work(work, self.engine.lag)


@dataclass(frozen=True)
class Clock:
    """When how much work could have been done: two increasing sequences, linear in between.

    Work is counted in the seconds that it takes by the fitted costs. A simulation that counts time
    in work, its results put back on the wall clock, is one of an engine that is now faster and now
    slower.

    Attributes:
        wall_s: shape [k], k at least 2, s from the start of the round.
        work_s: shape [k], s by the fitted costs.
    """

    wall_s: Floats
    work_s: Floats

    def work_at(self, wall_s: Floats) -> Floats:
        """The work that can have been done at a time."""
        return np.interp(wall_s, self.wall_s, self.work_s)

    def wall_at(self, work_s: Floats) -> Floats:
        """The time at which so much work can have been done."""
        return np.interp(work_s, self.work_s, self.wall_s)


def steady(slowness: float = 1.0) -> Clock:
    """A clock by which all work takes `slowness` times what the costs say."""
    wall_s = np.array([0.0, _AFTERWARDS_S])
    return Clock(wall_s, wall_s / slowness)


def slowness(measured: MeasuredRound, cost: StepCost) -> float:
    """How many times longer the steps of a round took in all than the costs say."""
    timed = measured.timed
    said = _said(measured, cost)[timed].sum()
    return float(measured.steps["duration_s"][timed].sum() / said) if said > 0 else math.nan


def drifting(measured: MeasuredRound, cost: StepCost, stretch_s: float) -> Clock:
    """A clock with the speed that a round's steps had in each stretch of time.

    A stretch in which the engine mostly idled gets the speed of the whole round.
    """
    timed = measured.timed
    # The first request starts the engine: that puts its clock beside the client's.
    sent_s = measured.records.sent_s
    since = measured.steps["t"][timed] - measured.steps["t"][0] + np.nanmin(sent_s)
    count = math.ceil((since[-1] + 1.0) / stretch_s)
    place = (since / stretch_s).astype(np.int64)
    took = np.bincount(place, measured.steps["duration_s"][timed], count)
    said = np.bincount(place, _said(measured, cost)[timed], count)
    told = took > _BUSY * stretch_s
    factors = np.full(count + 1, slowness(measured, cost))
    factors[:-1][told] = took[told] / said[told]
    wall_s = np.append(stretch_s * np.arange(count + 1), _AFTERWARDS_S)
    return Clock(wall_s, np.concatenate([[0.0], np.cumsum(np.diff(wall_s) / factors)]))


def _said(measured: MeasuredRound, cost: StepCost) -> Floats:
    """What the costs say of each step; what was not recorded costs nothing."""
    return cost.seconds(np.nan_to_num(measured.work))


def fit_delay(rounds: Sequence[MeasuredRound]) -> float:
    """Seconds of a first token's latency that the engine's steps do not explain; at least 0.

    What they do explain: the wait for the step in progress when the request came (half of it), the
    wait in the queue, and the step that computed the first token. Their rest is on the way between
    client and engine.
    """
    rests = [_unexplained(each) for each in rounds]
    known = [rest[np.isfinite(rest)] for rest in rests]
    found = np.concatenate(known) if known else np.empty(0)
    return max(float(np.median(found)), 0.0) if len(found) else 0.0


def _unexplained(measured: MeasuredRound) -> Floats:
    """Of each completed request's time to first token, what the engine's steps do not explain."""
    metrics = request_metrics(measured.records)
    arrival_s = measured.arrival_s[measured.records.completed]
    starts, durations = measured.steps["t"], measured.steps["duration_s"]
    # Requests join the queue between two steps: their wait for the first of them is no part of what
    # was recorded as the queue. Requests without a time of arrival give NaN.
    before = durations[np.maximum(np.searchsorted(starts, arrival_s) - 1, 0)]
    admitted_s = arrival_s + metrics.queue + 1e-6  # a hair later: sums of seconds are rounded
    step = np.searchsorted(starts, admitted_s) - 1
    own = durations[step]
    if measured.engine.lag:
        own = own + durations[np.minimum(step + 1, len(durations) - 1)]
    own = np.where(np.isfinite(arrival_s), own, np.nan)
    rest: Floats = metrics.ttft - metrics.queue - own - 0.5 * np.nan_to_num(before)
    return rest


def bends_of(tokens: Floats) -> Floats:
    """Where a curve through steps of so many tokens may bend; shape [k], k above 2, or empty.

    Args:
        tokens: of each step, shape [n].
    """
    ordered = np.sort(tokens[tokens >= 1.0])
    if len(ordered) == 0:
        return np.empty(0)
    bends, behind = [ordered[0]], 0
    while behind + _FEWEST < len(ordered):
        place = max(
            int(np.searchsorted(ordered, _FACTOR * bends[-1])),
            behind + _FEWEST,
        )
        if place >= len(ordered):
            break
        bends.append(ordered[place])
        behind = int(np.searchsorted(ordered, ordered[place], side="right"))
    if ordered[-1] > bends[-1]:
        bends[-1 if len(bends) > 1 and len(ordered) - behind < _FEWEST else len(bends) :] = [
            ordered[-1]
        ]
    return np.array(bends) if len(bends) > 2 else np.empty(0)


def ramps(tokens: Floats, bends: Floats) -> Floats:
    """Columns of a fit, shape [n, k − 1]: how much of each stretch between bends a step covers.

    Costs of them that are not negative make a curve that never falls. The last goes on.
    """
    starts, widths = bends[:-1], np.diff(bends)
    covered: Floats = np.clip(tokens[:, None] - starts, 0.0, None)
    covered[:, :-1] = np.minimum(covered[:, :-1], widths[:-1])
    return covered


def knots_from(bends: Floats, slopes: Floats) -> tuple[tuple[int, float], ...]:
    """Knots of a curve that is 0 at the first bend.

    Args:
        bends: shape [k].
        slopes: seconds a token between them, shape [k − 1].
    """
    seconds = np.concatenate([[0.0], np.cumsum(slopes * np.diff(bends))])
    return tuple((int(n), float(value)) for n, value in zip(bends, seconds, strict=True))


@dataclass(frozen=True)
class Fit:
    """Fitted costs, and how well they describe the steps they were fitted to.

    Attributes:
        cost: the costs; those that were left out are 0.
        standard_errors: of each fitted cost, s, by bootstrap over the rounds; empty with less than
            two rounds.
        left_out: why a cost was not fitted, by its name.
        rounds: the numbers of the rounds it was fitted to.
        steps: how many steps it was fitted to.
        idle: steps left out because the engine idled after them.
        outliers: steps left out because they took more than OUTLIER times what the fit says.
        outlier_time: share of all time that those took.
        r2: share of the variance of durations that the fit explains.
        mape: mean relative error of a step's duration.
        median_error: median relative error of a step's duration.
    """

    cost: StepCost
    standard_errors: Mapping[str, float]
    left_out: Mapping[str, str]
    rounds: tuple[int, ...]
    steps: int
    idle: int
    outliers: int
    outlier_time: float
    r2: float
    mape: float
    median_error: float


def fit_cost(rounds: Sequence[MeasuredRound]) -> Fit:
    """The costs that describe the steps of some rounds best, and the delay of their requests.

    Args:
        rounds: of one engine.

    Raises:
        InputError: there are too few steps, they are all alike, or one took less than no time.
    """
    timed = [each.timed for each in rounds]
    work = [each.work[kept] for each, kept in zip(rounds, timed, strict=True)]
    seconds = [each.steps["duration_s"][kept] for each, kept in zip(rounds, timed, strict=True)]
    count = sum(map(len, seconds))
    if count < FEWEST_STEPS:
        raise InputError(
            f"{count} timed steps were recorded, {FEWEST_STEPS} are needed: run `lengthwise bench` "
            "with more requests"
        )
    terms, left_out = _terms(np.concatenate(work))
    if len(terms) == 1:
        raise InputError(
            "all recorded steps did the same work, so nothing tells what it costs: record rounds "
            "with prompts of several lengths, and at a load below 1 too, so that batches differ"
        )
    bends = _bends(work, seconds, terms)
    designs = [_design(each, terms, bends) for each in work]
    costs, ordinary = _fit_without_outliers(designs, seconds)
    left_out |= {
        TERMS[term]: "the best fit gives it nothing"
        for term, value in zip(terms, costs, strict=False)
        if value == 0.0
    }
    products = [_products(*each) for each in zip(designs, seconds, ordinary, strict=True)]
    everything, kept = np.concatenate(seconds), np.concatenate(ordinary)
    taken = everything[kept]
    values = dict(zip((TERMS[term] for term in terms), costs.tolist(), strict=False))
    cost = StepCost(
        **{"prefill_s": 0.0, "decode_s": 0.0, **values},
        linear=knots_from(bends, costs[len(terms) :]) if len(bends) else (),
        delay_s=fit_delay(rounds),
        source=f"fitted to {len(taken):,} steps of {len(rounds)} rounds",
    )
    error = cost.seconds(np.nan_to_num(np.concatenate(work)[kept])) - taken
    relative = np.abs(error[taken > 0] / taken[taken > 0])
    variance = float(((taken - taken.mean()) ** 2).sum())
    return Fit(
        cost=cost,
        standard_errors={
            TERMS[term]: float(spread)
            for term, spread, value in zip(terms, _spreads(products), costs, strict=False)
            if value > 0.0
        }
        if len(rounds) > 1
        else {},
        left_out=left_out,
        rounds=tuple(each.info.round for each in rounds),
        steps=len(taken),
        idle=sum(int((~each).sum()) for each in timed),
        outliers=int((~kept).sum()),
        outlier_time=float(everything[~kept].sum() / everything.sum()),
        r2=1.0 - float((error**2).sum()) / variance if variance > 0 else 1.0,
        mape=float(relative.mean()),
        median_error=float(np.median(relative)),
    )


def fit_tokens(steps: Mapping[str, Floats], lag: int = 0) -> StepCost | None:
    """What a step, a prefilled and a decoded token cost, from steps of one kind of traffic.

    Args:
        steps: columns `duration_s` (NaN where unknown), `prefill_tokens` and `decode_tokens`; a
            few will do.
        lag: of the engine, see `timed_work`.

    Returns:
        Costs of tokens alone, contexts in them; None where the steps do not tell.
    """
    seconds = steps["duration_s"]
    timed = timed_steps(seconds, lag) & (seconds > 0)
    if not timed.any():
        return None
    work = np.stack([steps["prefill_tokens"], steps["decode_tokens"]], axis=1)
    design = np.column_stack([np.ones(len(seconds)), timed_work(work, lag)])
    (step_s, prefill_s, decode_s), _ = _fit_without_outliers([design[timed]], [seconds[timed]])
    if step_s + decode_s <= 0.0:
        return None
    source = f"fitted to {int(timed.sum()):,} steps of one round"
    return StepCost(float(step_s), float(prefill_s), float(decode_s), source=source)


def fit_steps(work: Floats, seconds: Floats) -> StepCost:
    """The costs that describe some steps best, every one of them timed.

    Args:
        work: shape [steps, 5] in the order of WORK.
        seconds: what each took.

    Raises:
        InputError: there are too few steps.
    """
    if len(seconds) < FEWEST_STEPS:
        raise InputError(f"{len(seconds)} timed steps were seen, {FEWEST_STEPS} are needed")
    terms, _ = _terms(work)
    bends = _bends([work], [seconds], terms)
    costs, _ = _fit_without_outliers([_design(work, terms, bends)], [seconds])
    values = dict(zip((TERMS[term] for term in terms), costs.tolist(), strict=False))
    return StepCost(
        **{"prefill_s": 0.0, "decode_s": 0.0, **values},
        linear=knots_from(bends, costs[len(terms) :]) if len(bends) else (),
        source=f"fitted to {len(seconds):,} steps",
    )


def _terms(work: Floats) -> tuple[list[int], dict[str, str]]:
    """Which TERMS can be fitted, by place, and why the others cannot."""
    kept, left_out = [0], dict[str, str]()
    basis = np.ones((len(work), 1))
    for place, name in enumerate(WORK, start=1):
        column = work[:, place - 1]
        reason = None
        if np.isnan(column).any():
            reason = "not recorded in every round"
        elif not column.any():
            reason = "did not occur"
        elif np.ptp(column) == 0:
            reason = "the same in every step"
        else:
            rest = column - basis @ np.linalg.lstsq(basis, column, rcond=None)[0]
            if rest @ rest < (1.0 - _SHARED) * float(((column - column.mean()) ** 2).sum()):
                reason = f"{name} cannot be told apart from what is fitted already"
        if reason is not None:
            left_out[TERMS[place]] = reason
            continue
        kept.append(place)
        basis = np.column_stack([basis, column])
    return kept, left_out


def _bends(work: Sequence[Floats], seconds: Sequence[Floats], terms: Sequence[int]) -> Floats:
    """Where the curve over tokens bends; empty where a straight line does as well.

    Both are fitted to every second step and compared at the others.
    """
    everything, durations = np.concatenate(work), np.concatenate(seconds)
    tokens = everything[:, 0] + everything[:, 1]
    bends = bends_of(tokens) if np.isfinite(tokens).all() else np.empty(0)
    if len(bends) == 0:
        return bends
    errors = []
    for candidate in (np.empty(0), bends):
        design = _design(everything, terms, candidate)
        costs, _ = _fit_without_outliers([design[::2]], [durations[::2]])
        relative = np.abs(design[1::2] @ costs / np.maximum(durations[1::2], 1e-9) - 1.0)
        errors.append(float(np.minimum(relative, 1.0).mean()))
    straight, curved = errors
    return bends if straight > _EXACT and curved < _CLEARLY * straight else np.empty(0)


def _design(work: Floats, terms: Sequence[int], bends: Floats) -> Floats:
    """The columns of a fit: ones, the work of each further term, and the ramps between bends."""
    columns = [np.ones(len(work)), work[:, [term - 1 for term in terms[1:]]]]
    if len(bends):
        columns.append(ramps(work[:, 0] + work[:, 1], bends))
    return np.column_stack(columns)


def _fit_without_outliers(
    designs: Sequence[Floats], seconds: Sequence[Floats]
) -> tuple[Floats, list[NDArray[np.bool_]]]:
    """The costs, and for each round which of its steps they were fitted to."""
    ordinary = [np.ones(len(each), np.bool_) for each in seconds]
    for _ in range(_PASSES):
        products = [_products(*each) for each in zip(designs, seconds, ordinary, strict=True)]
        costs = _solve(np.sum(products, axis=0))
        found = [
            taken <= OUTLIER * (design @ costs)
            for design, taken in zip(designs, seconds, strict=True)
        ]
        if all(np.array_equal(new, old) for new, old in zip(found, ordinary, strict=True)):
            break
        ordinary = found
    return costs, ordinary


def _products(design: Floats, seconds: Floats, kept: NDArray[np.bool_]) -> Floats:
    """All that least squares needs of a round: AᵀA, and Aᵀy as the last column."""
    products: Floats = design[kept].T @ np.column_stack([design, seconds])[kept]
    return products


def _solve(products: Floats) -> Floats:
    """Costs ≥ 0 that minimise the squared error."""
    gram, moment = products[:, :-1], products[:, -1]
    scale = np.sqrt(np.maximum(np.diag(gram), 1e-300))
    root = np.linalg.cholesky(gram / np.outer(scale, scale) + 1e-12 * np.eye(len(scale)))
    solution, _ = nnls(root.T, np.linalg.solve(root, moment / scale))
    costs: Floats = solution / scale
    return costs


def _spreads(products: Sequence[Floats]) -> Floats:
    """Standard deviation of each cost over fits to rounds drawn with replacement."""
    stacked = np.stack(products)
    costs = [_solve(stacked[drawn].sum(axis=0)) for drawn in draws(len(products), _DRAWS, seed=0)]
    spreads: Floats = np.std(costs, axis=0)
    return spreads
