"""What the scheduler counts for the status file and for Prometheus: totals, and times in queue."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, fields
from typing import Any, Final

#: s, upper bounds of the buckets; the last one, above all, is +Inf
BOUNDS: Final = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
#: output tokens, upper bounds of predicted lengths
LENGTHS: Final = (64, 256, 1024, 4096)

_NAMES: Final = ("0-64", "64-256", "256-1024", "1024-4096", "4096-")
_UNKNOWN: Final = "unknown"
_MOST_CLASSES: Final = 16  # that a client's choice may make time series of
_OTHER: Final = "other"


@dataclass
class Counters:
    """Totals since the engine started; each is exported as `lengthwise_<name>_total`."""

    steps: int = 0
    admissions: int = 0
    finished: int = 0
    predictions: int = 0
    fallbacks: int = 0
    stand_ins: int = 0
    late_predictions: int = 0
    shed_predictions: int = 0
    unpredicted: int = 0
    worker_restarts: int = 0
    preemptions: int = 0
    memory_preemptions: int = 0
    pauses: int = 0
    peeks: int = 0
    recomputed_tokens: int = 0
    overtakes: int = 0
    promotions: int = 0
    floor_falls: int = 0
    floor_rises: int = 0
    logged: int = 0
    log_lost: int = 0
    record_lost: int = 0
    switched_off: int = 0
    settings_changes: int = 0
    settings_refused: int = 0
    probe_predictions: int = 0
    probe_dropped: int = 0
    probe_partial_prompts: int = 0
    probe_failures: int = 0

    def snapshot(self) -> dict[str, int]:
        """The counters by name."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


#: what each counts
HELP: Final = {
    "steps": "Scheduler steps",
    "admissions": "Requests given a slot, re-admissions after preemption included",
    "finished": "Requests finished or aborted",
    "predictions": "Length predictions made",
    "fallbacks": "Requests ranked as the running median because no usable prediction came",
    "stand_ins": "Predictions made by the stand-in, until the slow predictor's own is there",
    "late_predictions": "Predictions that came when their request was no longer waiting",
    "shed_predictions": "Predictions given up: the worker's queue was full, the deadline passed, "
    "or the worker ended",
    "unpredicted": "Requests that ended before their prediction was there",
    "worker_restarts": "Times that the slow predictor's worker was started again after it ended",
    "preemptions": "Running requests preempted for a waiting one",
    "memory_preemptions": "Requests preempted because KV memory ran out, paused ones among them",
    "pauses": "Times that a running request was paused for another: it keeps its KV",
    "peeks": "Waiting requests that were prefilled before their turn, for the probe to read them",
    "recomputed_tokens": "Tokens computed again because their request had been preempted",
    "overtakes": "Times that a later arrival got a slot before a waiting request",
    "promotions": "Requests promoted by the starvation guard",
    "floor_falls": "Times that the rolling tau fell below `tau_floor`: the order is then fcfs",
    "floor_rises": "Times that it recovered: predictions decide again",
    "logged": "Answers written to the length log",
    "log_lost": "Answers not written to it: the disk was full or too slow, or prompts came faster "
    "than a gateway tokenises them",
    "record_lost": "Lines not written to the record: the disk was full or too slow",
    "switched_off": "Parts that raised an exception and were switched off: the rank function of a "
    "policy (the order is then fcfs), the record, the length log, tau",
    "settings_changes": "Settings taken up while serving",
    "settings_refused": "Settings files refused while serving",
    "probe_predictions": "Predictions from hidden states that were taken up",
    "probe_dropped": "Predictions from hidden states that were no numbers",
    "probe_partial_prompts": "Prompts that the prefix cache held for the most part: not predicted",
    "probe_failures": "Failures of the probe; after one in the worker it is off",
}


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
