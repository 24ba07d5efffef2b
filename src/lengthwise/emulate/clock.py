"""The time of an emulated engine: one that is moved by hand."""

from __future__ import annotations


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
