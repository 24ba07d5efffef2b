"""When each step of an engine ends, by its clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from lengthwise.emulate.step import Work
from lengthwise.emulate.virtual_clock import Clock, MeasuredClock, VirtualClock
from lengthwise.errors import LengthwiseError
from lengthwise.simulate.step_cost import StepCost, step_seconds


class Pace(Protocol):
    """Says when steps end.

    Attributes:
        clock: what shows the time.
    """

    clock: Clock

    def restart(self, durations: Sequence[float] | None = None) -> None:
        """Let it be 0 s; for an engine that is idle.

        Args:
            durations: what each step takes from now on, in s, whatever its work is.
        """

    def end_of(self, work: Work) -> float:
        """When the step that has just been planned will be over, in s."""

    @property
    def start_s(self) -> float:
        """When that step can start, in s."""

    def start_no_sooner(self, time_s: float) -> None:
        """Let it not start before `time_s`."""


class ModelledPace:
    """Steps take what a model of their cost says, or what was recorded of others.

    A step starts when it is planned, or as soon as the one before it is over, as on a stream.
    """

    def __init__(self, cost: StepCost, clock: Clock) -> None:
        self.clock = clock
        self._terms = cost.terms
        self._busy_until_s = 0.0
        self._recorded: Iterator[float] | None = None

    def restart(self, durations: Sequence[float] | None = None) -> None:
        """See `Pace`."""
        assert isinstance(self.clock, VirtualClock)
        self.clock.now_s = self._busy_until_s = 0.0
        self._recorded = None if durations is None else iter(durations)

    def end_of(self, work: Work) -> float:
        """See `Pace`.

        Raises:
            LengthwiseError: fewer steps were recorded.
        """
        if self._recorded is None:
            seconds = float(step_seconds(self._terms, *work))
        else:
            recorded = next(self._recorded, None)
            if recorded is None:
                raise LengthwiseError("the engine takes more steps than were recorded")
            seconds = recorded
        self._busy_until_s = self.start_s + seconds
        return self._busy_until_s

    @property
    def start_s(self) -> float:
        """See `Pace`."""
        return max(self.clock.now(), self._busy_until_s)

    def start_no_sooner(self, time_s: float) -> None:
        """See `Pace`."""
        self._busy_until_s = max(self._busy_until_s, time_s)


class MeasuredPace:
    """Steps take as long as this machine needs for them, which is kept.

    For an engine that plans a step when the one before is over. A step then lasts from one end to
    the next: all that vLLM does in between is part of it.

    Attributes:
        durations: of the steps since the start, in s.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        """Take a clock of the machine, such as `time.monotonic` or `time.process_time`."""
        self.clock = MeasuredClock(read)
        self.durations: list[float] = []

    def restart(self, durations: Sequence[float] | None = None) -> None:
        """See `Pace`; no durations can be given."""
        assert durations is None
        self.clock.restart()
        self.durations = []

    def end_of(self, work: Work) -> float:
        """See `Pace`; the step has just been computed."""
        start_s = self.clock.now()
        end_s = self.clock.read()
        self.durations.append(end_s - start_s)
        return end_s

    @property
    def start_s(self) -> float:
        """See `Pace`."""
        return self.clock.now()

    def start_no_sooner(self, time_s: float) -> None:
        """See `Pace`; what is computed is computed at once."""
