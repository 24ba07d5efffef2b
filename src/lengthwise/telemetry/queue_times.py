"""How long requests waited for their first step, by class and by predicted length."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any, Final

#: s, upper bounds of the buckets; the last one, above all, is +Inf
BOUNDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
#: output tokens, upper bounds of predicted lengths
LENGTHS: Final = (64, 256, 1024, 4096)

_NAMES: Final = ("0-64", "64-256", "256-1024", "1024-4096", "4096-")
_UNKNOWN: Final = "unknown"
_MOST_CLASSES: Final = 16  # that a client's choice may make time series of
_OTHER: Final = "other"


class QueueTimes:
    """Histograms, one for each class and range of predicted lengths that has been seen."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._sums: dict[tuple[str, str], float] = {}
        self._classes: set[int] = set()

    def observe(self, queue_s: float, priority: int, expected: float | None) -> None:
        """A request got its first step.

        Args:
            queue_s: s since it came.
            priority: its class.
            expected: output tokens that were predicted; None where nothing was.
        """
        if len(self._classes) < _MOST_CLASSES:
            self._classes.add(priority)
        name = str(priority) if priority in self._classes else _OTHER
        length = _UNKNOWN if expected is None else _NAMES[bisect_left(LENGTHS, expected)]
        counts = self._counts.setdefault((name, length), [0] * (len(BOUNDS) + 1))
        counts[bisect_left(BOUNDS, queue_s)] += 1
        self._sums[name, length] = self._sums.get((name, length), 0.0) + queue_s

    def snapshot(self) -> list[dict[str, Any]]:
        """Each histogram: `class`, `predicted_tokens`, `counts` of each bucket, and `sum` in s."""
        return [
            {
                "class": name,
                "predicted_tokens": length,
                "counts": list(counts),
                "sum": self._sums.get((name, length), 0.0),
            }
            for (name, length), counts in list(self._counts.items())
        ]
