"""What the scheduler tells its journal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from lengthwise.request import LOOKING, LiveTable
from lengthwise.telemetry.journal import Journal
from lengthwise.vllm.compat import requests
from lengthwise.vllm.queue import PolicyQueue

_EVERY_S: Final = 1.0  # between two looks at the queue
_LOOKED_AT: Final = 256  # of those that wait

Place = tuple[float | None, int | None]  #: rank and tier


class JournalNotes:
    """Notes events of requests in a journal.

    Args:
        journal: where to.
        live: the scheduler's table.
        waiting: its queue.
        place_of: the rank and the tier of a row in the step that is planned.
    """

    def __init__(
        self,
        journal: Journal,
        live: LiveTable,
        waiting: PolicyQueue,
        place_of: Callable[[int], Place],
    ) -> None:
        self._journal = journal
        self._live = live
        self._waiting = waiting
        self._place_of = place_of
        self._looked_s = -_EVERY_S
        self._paused: dict[str, Any] = {}

    def arrived(self, request: Any) -> None:
        """A request, which has its row, is about to be queued."""
        columns = self._live.table[self._live.row(request.request_id)]
        self._put(
            "arrived",
            request,
            float(columns["arrival_s"]),
            id=requests.name_of(request),
            index=int(columns["arrival_index"]),
            priority=requests.priority_class(request),
            prompt_tokens=request.num_prompt_tokens,
            waiting=len(self._waiting),
        )

    def ran(self, request: Any, now: float) -> None:
        """A request got a slot in the step that is planned."""
        row = self._live.row(request.request_id)
        index = int(self._live.table["arrival_index"][row])
        rank, tier, expected = self._place_and_prediction(row)
        facts = {"index": index, "rank": rank, "tier": tier, "expected": expected}
        if self._live.table["look"][row] == LOOKING:
            facts["look"] = True
        self._put("ran", request, now, **facts)

    def preempted(self, request: Any, now: float, why: str) -> None:
        """A request lost its slot: `policy`, `memory` or `reset`."""
        tokens = request.num_output_tokens
        self._put("preempted", request, now, why=why, output_tokens=tokens)

    def ended(self, request: Any, now: float, finished: str | None) -> None:
        """A request has ended, for a reason in vLLM's words."""
        tokens = request.num_output_tokens
        self._put("ended", request, now, finished=finished, output_tokens=tokens)

    def planned(self, paused: Sequence[Any], now: float) -> None:
        """Once a second, the first of those that wait; and who is paused, and who runs again."""
        if not 0.0 <= now - self._looked_s < _EVERY_S:
            self._looked_s = now
            self._look_at_queue(now)
        if paused or self._paused:
            self._look_at_paused(paused, now)

    def _put(self, event: str, request: Any, t: float, **facts: Any) -> None:
        self._journal.put(t=t, event=event, request=request.request_id, **facts)

    def _look_at_queue(self, now: float) -> None:
        """As far as they have been ranked."""
        rows = {
            request.request_id: self._place_and_prediction(self._live.row(request.request_id))
            for request in islice(self._waiting.queued(), _LOOKED_AT)
        }
        if rows:
            self._journal.put(t=now, event="queue", requests=rows)

    def _look_at_paused(self, paused: Sequence[Any], now: float) -> None:
        before, self._paused = self._paused, {each.request_id: each for each in paused}
        for name, request in self._paused.items():
            if name not in before:
                self._put("paused", request, now, output_tokens=request.num_output_tokens)
        for name, request in before.items():
            # Whoever has ended or lost its memory since has an event of its own.
            if name not in self._paused and requests.is_running(request):
                self._put("resumed", request, now)

    def _place_and_prediction(self, row: int) -> tuple[float | None, int | None, float | None]:
        columns = self._live.table[row]
        expected = float(columns["expected"]) if columns["predicted"] else None
        return *self._place_of(row), expected
