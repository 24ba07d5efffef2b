"""A round of a benchmark as a simulation of it needs it, and what it says of time.

That is the wall clock of a machine whose speed varies, against the work that its engine does, and
the time between client and engine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.measure.metrics import request_metrics
from lengthwise.measure.request_record import Records
from lengthwise.measure.run_info import RoundInfo
from lengthwise.policy.discipline import Discipline
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import WORK, StepCost

Floats = NDArray[np.float64]
_BUSY: Final = 0.2  # share of a stretch that the engine must have worked to tell its speed
_AFTERWARDS_S: Final = 1e7  # the last stretch goes on for so long


@dataclass(frozen=True)
class MeasuredRound:
    """What was measured, under what, and what the engine did.

    Attributes:
        info: which round.
        records: its requests as the client saw them; n of them.
        steps: the engine's steps as columns: `t` and `duration_s` (s; NaN where it idled), WORK,
            and `running`. What was not recorded is NaN.
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

        After the others the engine idled or, with asynchronous scheduling, before them.

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
        timed: NDArray[np.bool_] = np.isfinite(durations)
        if self.engine.lag:
            timed[1:] &= np.isfinite(durations[:-1])
            timed[:1] = False
        return timed

    @property
    def work(self) -> Floats:
        """What the engine did in each step's duration, shape [steps, 5] in the order of WORK.

        That is the step itself or, with asynchronous scheduling, the one before: the next step is
        planned as soon as the one before is done. What was not recorded is NaN.
        """
        columns = dict(self.steps)
        if np.isnan(columns["requests"]).any():
            # Older records: nearly the same, since a request without tokens in a step is rare.
            columns["requests"] = columns["running"]
        work = np.stack([columns[name] for name in WORK], axis=1)
        return np.roll(work, self.engine.lag, axis=0)


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
    prefills = durations[measured.timed & (measured.work[:, 0] > 0)]
    if len(prefills) == 0:
        return np.full(len(arrival_s), np.nan)
    if np.isfinite(arrival_s).any():
        # Requests join the queue between two steps: their wait for the first of them is no part of
        # what was recorded as the queue. Requests without a time of arrival give NaN.
        before = durations[np.maximum(np.searchsorted(starts, arrival_s) - 1, 0)]
        admitted_s = arrival_s + metrics.queue + 1e-6  # a hair later: sums of seconds are rounded
        step = np.searchsorted(starts, admitted_s) - 1
        own = durations[step]
        if measured.engine.lag:
            own = own + durations[np.minimum(step + 1, len(durations) - 1)]
        own = np.where(np.isfinite(arrival_s), own, np.nan)
    else:
        # Older records do not say when requests arrived, hence not in which step they began.
        before = np.full(len(arrival_s), np.nanmean(durations))
        own = np.full(len(arrival_s), np.median(prefills))
    rest: Floats = metrics.ttft - metrics.queue - own - 0.5 * np.nan_to_num(before)
    return rest
