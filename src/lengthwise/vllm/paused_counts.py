"""What vLLM's scheduler says of itself where requests may be paused.

An engine in which nobody can be paused does without: it would call these a few times a step.
"""

from __future__ import annotations

from typing import Any

from lengthwise.vllm.plan import Planner


class PausedCounts:
    """Goes before `LengthwiseMixin` and counts paused requests apart from those that run."""

    _planner: Planner

    def get_request_counts(self) -> tuple[int, int]:
        """Running and waiting requests; within a step, too, paused ones are there to be served."""
        running, waiting = super().get_request_counts()  # type: ignore[misc]
        return running + self._planner.left_out, waiting

    def make_stats(self, *args: Any, **kwargs: Any) -> Any:
        """The parent's, without paused requests among the running ones: see the gauges."""
        stats = super().make_stats(*args, **kwargs)  # type: ignore[misc]
        if stats is not None and self._planner.paused:
            stats.num_running_reqs -= self._planner.paused_now
        return stats
