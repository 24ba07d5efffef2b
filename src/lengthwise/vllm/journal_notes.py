"""What the scheduler tells its journal, where it keeps one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final

from lengthwise.policy.live_table import LiveTable
from lengthwise.request import LOOKING
from lengthwise.telemetry.journal import Journal
from lengthwise.vllm import compat
from lengthwise.vllm.observers import Containment
from lengthwise.vllm.predictions import name_of
from lengthwise.vllm.queue import PolicyQueue

_PART: Final = "journal"
_EVERY_S: Final = 1.0  # between two looks at the queue
_LOOKED_AT: Final = 256  # of those that wait

Place = tuple[float | None, int | None]  #: rank and tier


class JournalNotes:
    """Notes events of requests; does nothing while there is no journal.

    Args:
        live: the scheduler's table.
        waiting: its queue.
        contained: keeps what goes wrong here from ending the engine.
        place_of: the rank and the tier of a row in the step that is planned.

    Attributes:
        journal: where to; None for nowhere.
    """

    def __init__(
        self,
        live: LiveTable,
        waiting: PolicyQueue,
        contained: Containment,
        place_of: Callable[[int], Place],
    ) -> None:
        self.journal: Journal | None = None
        self._live = live
        self._waiting = waiting
        self._contained = contained
        self._place_of = place_of
        self._looked_s = -_EVERY_S
        self._paused: dict[str, Any] = {}

    def arrived(self, request: Any) -> None:
        """A request, which has its row, is about to be queued."""
        if self.journal is not None:
            self._contained.call(_PART, self._arrived, request)

    def ran(self, request: Any, now: float) -> None:
        """A request got a slot in the step that is planned."""
        if self.journal is not None:
            self._contained.call(_PART, self._ran, request, now)

    def preempted(self, request: Any, now: float, why: str) -> None:
        """A request lost its slot: `policy`, `memory` or `reset`."""
        if self.journal is not None:
            tokens = request.num_output_tokens
            self._contained.call(
                _PART, self._put, "preempted", request, now, why=why, output_tokens=tokens
            )

    def ended(self, request: Any, now: float, finished: str | None) -> None:
        """A request has ended, for a reason in vLLM's words."""
        if self.journal is not None:
            tokens = request.num_output_tokens
            self._contained.call(
                _PART, self._put, "ended", request, now, finished=finished, output_tokens=tokens
            )

    def look_at_queue(self, now: float) -> None:
        """Once a second: the first of those that wait, as far as they have been ranked."""
        if self.journal is not None and not 0.0 <= now - self._looked_s < _EVERY_S:
            self._looked_s = now
            self._contained.call(_PART, self._look_at_queue, now)

    def look_at_paused(self, paused: Sequence[Any], now: float) -> None:
        """Who is paused in the step that is planned; and who runs again, of those that were."""
        if self.journal is None:
            self._paused.clear()  # requests are not to be held on to
        elif paused or self._paused:
            self._contained.call(_PART, self._look_at_paused, paused, now)

    def _put(self, event: str, request: Any, t: float, **facts: Any) -> None:
        assert self.journal is not None
        self.journal.put(t=t, event=event, request=request.request_id, **facts)

    def _arrived(self, request: Any) -> None:
        columns = self._live.table[self._live.row(request.request_id)]
        self._put(
            "arrived",
            request,
            float(columns["arrival_s"]),
            id=name_of(request),
            index=int(columns["arrival_index"]),
            priority=compat.priority_class(request),
            prompt_tokens=request.num_prompt_tokens,
            waiting=len(self._waiting),
        )

    def _ran(self, request: Any, now: float) -> None:
        row = self._live.row(request.request_id)
        index = int(self._live.table["arrival_index"][row])
        rank, tier, expected = self._place_and_prediction(row)
        facts = {"index": index, "rank": rank, "tier": tier, "expected": expected}
        if self._live.table["look"][row] == LOOKING:
            facts["look"] = True
        self._put("ran", request, now, **facts)

    def _look_at_queue(self, now: float) -> None:
        rows = {
            request.request_id: self._place_and_prediction(self._live.row(request.request_id))
            for request in islice(self._waiting.queued(), _LOOKED_AT)
        }
        if rows:
            assert self.journal is not None
            self.journal.put(t=now, event="queue", requests=rows)

    def _look_at_paused(self, paused: Sequence[Any], now: float) -> None:
        before, self._paused = self._paused, {each.request_id: each for each in paused}
        for name, request in self._paused.items():
            if name not in before:
                self._put("paused", request, now, output_tokens=request.num_output_tokens)
        for name, request in before.items():
            # Whoever has ended or lost its memory since has an event of its own.
            if name not in self._paused and compat.is_running(request):
                self._put("resumed", request, now)

    def _place_and_prediction(self, row: int) -> tuple[float | None, int | None, float | None]:
        columns = self._live.table[row]
        expected = float(columns["expected"]) if columns["predicted"] else None
        return *self._place_of(row), expected
