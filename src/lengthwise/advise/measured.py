"""A round of a benchmark as a simulation of it needs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.measure.request_record import Records
from lengthwise.measure.run_info import RoundInfo
from lengthwise.policy.discipline import Discipline
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import WORK

Floats = NDArray[np.float64]


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
