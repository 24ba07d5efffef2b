"""How far layer times are off: between measured numbers of tokens, and where they are derived."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from lengthwise.simulate.engine import StepCost
from lengthwise.simulate.presets import (
    IN_STEPS,
    Floats,
    Measured,
    derived_times,
    knots_of,
    measured_times,
    nearest,
)

HALVES: Final = (0, 1)  #: of the measured numbers of tokens: every second one, and the others


class Errors(NamedTuple):
    """Relative errors of predicted times at measured numbers of tokens."""

    tokens: Floats  #: shape [k]
    relative: Floats  #: shape [k], above 0 where the prediction is too long


def left_out_errors(measured: Measured, half: int, in_steps: float = IN_STEPS) -> Errors:
    """Every second number of tokens, predicted from the others.

    Args:
        measured: whose times.
        half: which numbers are left out: 1 for the second, fourth, … and 0 for the others.
        in_steps: see `knots_of`.
    """
    tokens, seconds = measured_times()[1][measured]
    left_out = np.arange(len(tokens)) % 2 == half
    knots = knots_of(tokens[~left_out], seconds[~left_out], in_steps)
    return _errors(knots, tokens[left_out], seconds[left_out])


def fit_errors(measured: Measured) -> Errors:
    """What the knots make of the times that they were made from: they never fall."""
    tokens, seconds = measured_times()[1][measured]
    return _errors(knots_of(tokens, seconds), tokens, seconds)


def derived_errors(measured: Measured) -> tuple[Measured, Errors]:
    """A measured layer as if nobody had measured it: what it is derived from, and how well."""
    source = nearest(*measured, itself=False)
    derived = derived_times(source, measured.gpu, measured.model)
    tokens, seconds = measured_times()[1][measured]
    return source, _errors(derived.knots, tokens, seconds)


def _errors(knots: tuple[tuple[int, float], ...], tokens: Floats, seconds: Floats) -> Errors:
    predicted = StepCost(0.0, 0.0, 0.0, linear=knots).linear_s(tokens)
    return Errors(tokens, predicted / seconds - 1.0)
