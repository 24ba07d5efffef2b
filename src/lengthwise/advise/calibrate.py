"""Fit step costs to what a real engine recorded.

Non-negative least squares (Lawson and Hanson, 1974) of the steps' durations on their work. A step's
duration is the time until the next one began, so it contains all that the engine does between.

Where a curve over the tokens of a step describes steps that the fit has not seen clearly better
than a straight line does, it is fitted with the rest: on a GPU a few tokens more cost nothing until
computing takes longer than reading the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from lengthwise.advise.measured import Floats, MeasuredRound, fit_delay
from lengthwise.advise.token_curve import bends_of, knots_from, ramps
from lengthwise.errors import InputError
from lengthwise.intervals import draws
from lengthwise.simulate.step_cost import WORK, StepCost

FEWEST_STEPS: Final = 200
OUTLIER: Final = 5.0  #: a step that took so many times what the others let expect is left out

#: The costs of a step: the constant, then one for each kind of WORK.
TERMS: Final = ("step_s", "prefill_s", "decode_s", "kv_s", "request_s", "attention_s")

_SHARED: Final = 0.99  # of a term's variance explained by the terms before it: not told apart
_CLEARLY: Final = 0.9  # of a straight line's error at unseen steps: a curve must be nearer
_EXACT: Final = 1e-3  # a relative error that leaves nothing to explain
_PASSES: Final = 10
_DRAWS: Final = 500


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


def fit_tokens(steps: Mapping[str, Floats]) -> StepCost | None:
    """What a step, a prefilled and a decoded token cost, from steps of one kind of traffic.

    Args:
        steps: columns `duration_s` (NaN where unknown), `prefill_tokens` and `decode_tokens`; a
            few will do.

    Returns:
        Costs of tokens alone, contexts in them; None where the steps do not tell.
    """
    seconds = steps["duration_s"]
    timed = np.isfinite(seconds) & (seconds > 0)
    if not timed.any():
        return None
    design = np.stack(
        [np.ones(len(seconds)), steps["prefill_tokens"], steps["decode_tokens"]], axis=1
    )
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
