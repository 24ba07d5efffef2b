"""The time of an emulated engine: one that is moved by hand, or the machine's own."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """What shows the time and lets it pass."""

    def now(self) -> float:
        """What it shows, in s."""

    def wait_until(self, time_s: float) -> None:
        """Let it be `time_s`, unless that is past."""


class VirtualClock:
    """Shows seconds since its start and moves only when it is told to.

    Attributes:
        now_s: what it shows.
    """

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        """What it shows, in s; in the place of `time.monotonic`."""
        return self.now_s

    def wait_until(self, time_s: float) -> None:
        """Let it be `time_s`, unless that is past."""
        self.now_s = max(self.now_s, time_s)


class RealClock:
    """The machine's own time: waiting is sleeping."""

    def now(self) -> float:
        """Monotonic seconds."""
        return time.monotonic()

    def wait_until(self, time_s: float) -> None:
        """Sleep. Some 0.1 ms more than asked, which does not add up: steps end by plan."""
        left_s = time_s - time.monotonic()
        if left_s > 0.0:
            time.sleep(left_s)


class MeasuredClock(VirtualClock):
    """Shows the machine's time as it was when it was last read, in s since its start.

    So all that is decided and noted between two readings has one time, as in virtual time. Time in
    which nothing is done is not waited for.
    """

    def __init__(self, read: Callable[[], float]) -> None:
        """Take a clock of the machine, such as `time.monotonic` or `time.process_time`."""
        super().__init__()
        self._read = read
        self._origin_s = read()

    def restart(self) -> None:
        """Let it be 0 s."""
        self._origin_s = self._read()
        self.now_s = 0.0

    def read(self) -> float:
        """Read the machine's clock, and show that from now on."""
        self.now_s = max(self.now_s, self._read() - self._origin_s)
        return self.now_s

    def wait_until(self, time_s: float) -> None:
        """Let it be `time_s`, unless that is past."""
        if time_s > self.now_s:
            self._origin_s = self._read() - time_s
            self.now_s = time_s
