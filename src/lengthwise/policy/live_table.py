"""The table of requests that the scheduler keeps, one row for each live request."""

from __future__ import annotations

import heapq
from typing import Any

from lengthwise.policy.tenants import Tenants
from lengthwise.request import FREE, PARKED, RequestTable, new_table

_INITIAL_CAPACITY = 256


class LiveTable:
    """Rows for live requests, reused lowest first so that a scan stays short.

    Attributes:
        table: array of REQUEST; replaced by a larger one when it is full.
        count: every row in use is below this.
        tenants: whose the requests are.
    """

    def __init__(self) -> None:
        self.table: RequestTable = new_table(_INITIAL_CAPACITY)
        self.count = 0
        self.tenants = Tenants()
        self._rows: dict[str, int] = {}
        self._requests: list[Any] = []
        self._free: list[int] = []
        self._arrivals = 0

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def arrivals(self) -> int:
        """Requests added so far; the next one's arrival index."""
        return self._arrivals

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._rows

    def add(self, request_id: str, request: Any) -> int:
        """Give a request a row, PARKED, with the next arrival index.

        Returns:
            The row.
        """
        if self._free:
            row = heapq.heappop(self._free)
        else:
            row = len(self._requests)
            self._requests.append(None)
            if row >= len(self.table):
                larger = new_table(2 * len(self.table))
                larger[: len(self.table)] = self.table
                self.table = larger
        self.count = max(self.count, row + 1)
        self._rows[request_id] = row
        self._requests[row] = request
        self.table[row] = 0
        self.table["state"][row] = PARKED
        self.table["arrival_index"][row] = self._arrivals
        self._arrivals += 1
        return row

    def arrive_anew(self, request_id: str) -> None:
        """Give a live request the next arrival index."""
        self.table["arrival_index"][self._rows[request_id]] = self._arrivals
        self._arrivals += 1

    def release(self, request_id: str) -> None:
        """Take the row of a finished request back."""
        row = self._rows.pop(request_id)
        self._requests[row] = None
        self.table["state"][row] = FREE
        heapq.heappush(self._free, row)
        while self.count > 0 and self._requests[self.count - 1] is None:
            self.count -= 1

    def request_ids(self) -> list[str]:
        """The live requests, oldest first."""
        return list(self._rows)

    def row(self, request_id: str) -> int:
        """The row of a live request."""
        return self._rows[request_id]

    def request(self, row: int) -> Any:
        """The live request in a row."""
        return self._requests[row]
