"""The wall clock of a machine whose speed varies, against the work that its engine does."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np

from lengthwise.advise.measured import Floats, MeasuredRound
from lengthwise.simulate.step_cost import StepCost

_BUSY: Final = 0.2  # share of a stretch that the engine must have worked to tell its speed
_AFTERWARDS_S: Final = 1e7  # the last stretch goes on for so long


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
