"""The REQUEST record: one request as every policy, the vLLM adapter and the simulator see it.

A table of requests is a numpy array of this dtype. Policies are compiled functions that read its
fields by name. Fields marked *derived* are written by the compiled kernel just before ranking,
from one clock reading; all others are set when something happens to the request.

The true answer length is deliberately not a field: a policy cannot read what it must not know. An
oracle is a *predictor*, which puts the truth where other predictors put their estimate.
"""

from __future__ import annotations

import heapq
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

FREE: Final = 0  #: the row is not in use
WAITING: Final = 1  #: queued and may be admitted
RUNNING: Final = 2  #: holds a slot
PREDICTED: Final = 1  #: value of `predicted`: from the prompt's words
BY_PROBE: Final = 2  #: value of `predicted`
PARKED: Final = 3  #: neither queued nor running: waits for remote KV or for streaming input
PAUSED: Final = 4  #: left out of the steps; its KV and its place in the worker stay its own

LOOKING: Final = 1  #: value of `look`: it was let in to be prefilled, for the probe to read it
LOOKED: Final = 2  #: it has been read and put aside, and waits for its turn
LENT: Final = 3  #: it was paused for the steps of another's look, and goes on behind them

#: What a prediction consists of, in output tokens but for the score; fields of the record, too.
PREDICTION: Final = ("score", "expected", "low", "median", "high")
#: The same in files.
RECORDED_PREDICTION: Final = ("score", *(f"{name}_tokens" for name in PREDICTION[1:]))

REQUEST: Final = np.dtype(
    [
        # What nearly every rank reads comes first, so that one cache line per row is enough.
        ("state", np.int32),  # FREE, WAITING, RUNNING, PARKED or PAUSED
        ("age", np.int32),  # output tokens generated so far
        ("sequence", np.int64),  # place in the queue: append takes ++tail, put back takes --head
        ("priority", np.int64),  # the request's own class, lower runs sooner
        ("arrival_index", np.int64),  # order of first arrival; never changes
        ("score", np.float64),  # predicted score, lower means shorter; no unit
        ("remaining", np.float64),  # predicted output tokens still to come
        ("arrival_s", np.float64),  # s, scheduler's monotonic clock, when first seen
        ("overtaken", np.int32),  # later arrivals that got a slot before it did
        ("promoted", np.int32),  # iterations of promotion left to run (LTR's quantum M)
        # The prediction, in output tokens.
        ("expected", np.float64),  # mean of the total
        ("low", np.float64),  # 10 % quantile of the total
        ("median", np.float64),  # 50 % quantile
        ("high", np.float64),  # 90 % quantile
        ("initial", np.float64),  # `expected` as it was before the first token; never changes then
        ("predicted_age", np.int32),  # the age at which the four were predicted; 0: from the prompt
        ("predicted", np.int32),  # 0: the running median stands in; 1: its own; 2: from the probe
        ("most_tokens", np.int32),  # its answer is cut there; 0: not known, or it is not cut
        # What the request has used and would cost.
        ("prompt_tokens", np.int32),
        ("cached_tokens", np.int32),  # prompt tokens found in the prefix cache when last looked up
        ("computed_tokens", np.int32),  # tokens whose KV is held now
        ("preemptions", np.int32),  # times preempted for another so far
        ("memory_preemptions", np.int32),  # times that it lost its KV for want of memory
        ("last_step", np.int64),  # scheduler step in which it last ran, or arrived
        ("ahead", np.int64),  # requests of its class that waited when it arrived
        # What the guard `max_lead` counts, see `policy.guards`.
        ("decoded_before", np.int64),  # answers' tokens that the engine had computed when it came
        ("prefilled_before", np.int64),  # prompts' tokens, likewise
        ("decoded_ranked", np.int64),  # answers' tokens when it was ranked last
        ("prefilled_ranked", np.int64),  # prompts' tokens, likewise
        ("decoded_meanwhile", np.int64),  # answers' tokens computed while it ran
        ("prefilled_meanwhile", np.int64),  # prompts' tokens, likewise
        ("queued_work", np.int64),  # the most that waited at once while it did, in output tokens
        ("deadline_s", np.float64),  # s from arrival to when its first token is due; 0: none
        ("adapter", np.int64),  # its LoRA adapter; 0 for none
        ("tenant", np.int64),  # whose it is, see `policy.guards`; 0: of those that are not named
        ("pauses", np.int64),  # times paused so far
        ("paused_s", np.float64),  # s, when it was paused last
        ("look", np.int64),  # 0, LOOKING, LOOKED or LENT; see `policy.peek`
        # Derived: written by the kernel before it ranks.
        ("prefill_work", np.float64),  # known tokens still to compute, in output tokens of work
        ("wait_s", np.float64),  # s since arrival
        ("lateness", np.float64),  # share used up of the work that may be done while it waits
        ("idle_steps", np.int64),  # steps since it last ran
        ("stalled_s", np.float64),  # s since it was paused, while it is
        ("lead", np.int64),  # tokens that its tenant was served beyond the one served least
    ],
    align=True,
)

RequestTable = NDArray[np.void]  #: a one-dimensional array of REQUEST

_CAPACITY: Final = 256  # of a table of live requests at first


def new_table(capacity: int) -> RequestTable:
    """An empty table with room for `capacity` requests, every row FREE."""
    return np.zeros(capacity, dtype=REQUEST)


class LiveTable:
    """Rows for live requests, reused lowest first so that a scan stays short.

    Attributes:
        table: array of REQUEST; replaced by a larger one when it is full.
        count: every row in use is below this.
        arrivals: requests added so far; the next one's arrival index.
    """

    def __init__(self) -> None:
        self.table: RequestTable = new_table(_CAPACITY)
        self.count = self.arrivals = 0
        self._rows: dict[str, int] = {}
        self._requests: list[Any] = []
        self._free: list[int] = []

    def __len__(self) -> int:
        return len(self._rows)

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
        self.table["arrival_index"][row] = self.arrivals
        self.arrivals += 1
        return row

    def arrive_anew(self, request_id: str) -> None:
        """Give a live request the next arrival index."""
        self.table["arrival_index"][self._rows[request_id]] = self.arrivals
        self.arrivals += 1

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
