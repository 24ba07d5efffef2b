"""Places in a queue that is kept by arrival time, as vLLM's own under `--scheduling-policy
priority`.

Requests may reach the engine in another order than they reached the servers in front of it
(several API servers, a prompt that takes long to tokenize). Stock vLLM then goes by arrival time
and, where that is the same, by name; so does this, and a preempted request goes back to its place.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from typing import Any

from lengthwise.policy.live_table import LiveTable

_Key = tuple[float, str]


class ArrivalOrder:
    """Keeps the column `sequence` of live requests in the order of their arrival times.

    Args:
        live: the scheduler's table.
    """

    def __init__(self, live: LiveTable) -> None:
        self._live = live
        self._keys: list[_Key] = []  # in order
        self._known: dict[str, _Key] = {}

    def place(self, request: Any) -> None:
        """Give a request its place; one that has it keeps it, unless it arrives anew."""
        key = (request.arrival_time, request.request_id)
        if self._known.get(request.request_id) == key:
            return
        self.forget(request.request_id)
        self._known[request.request_id] = key
        insort(self._keys, key)
        here = bisect_left(self._keys, key)
        number = self._number(here - 1) + 1 if here else 0
        # Nearly all arrive in order: then nobody is behind. Else those behind move up, to a gap.
        for place in range(here, len(self._keys)):
            if place > here and self._number(place) >= number:
                break
            self._live.table["sequence"][self._row(place)] = number
            number += 1

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        key = self._known.pop(request_id, None)
        if key is not None:
            del self._keys[bisect_left(self._keys, key)]

    def _number(self, place: int) -> int:
        return int(self._live.table["sequence"][self._row(place)])

    def _row(self, place: int) -> int:
        return self._live.row(self._keys[place][1])
