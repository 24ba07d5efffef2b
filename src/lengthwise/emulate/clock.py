"""The time of an emulated engine: one that is moved by hand, or the machine's own."""

from __future__ import annotations

import time
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
