"""vLLM's waiting queue, served in the order of a policy.

The queue keeps its requests in the order in which stock vLLM would: append at the tail, put a
preempted request back at the head; under `--scheduling-policy priority`, by class and arrival time.
That is all that fcfs needs. For any other policy the scheduler opens a step, and from the first
look until the step ends the queue hands requests out in one frozen order, so that the request that
vLLM looked at, allocated for and takes is always the same.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from lengthwise.request import PARKED, RUNNING, WAITING, LiveTable
from lengthwise.vllm.compat.requests import is_running, priority_class

if TYPE_CHECKING:
    RequestQueue = object
else:
    from vllm.v1.core.sched.request_queue import RequestQueue

NextRows = Callable[[], list[int]]
_Key = tuple[float, str]


class PolicyQueue(RequestQueue):
    """A `RequestQueue` over the rows of a `LiveTable`.

    Args:
        live: the scheduler's table.
        next_rows: gives the next of those that wait in the step's order; called when the step first
            looks, and again when those that it gave have left the queue.
        by_priority: the engine was started with `--scheduling-policy priority`.

    Attributes:
        believes_clients: whether requests' own priorities count.
        classes_matter: whether requests of several priority classes may be queued: set as soon as
            one has another class than 0.
        parked: those that hold KV and wait in a queue of the parent's, for a session's next turn or
            for KV that is sent; by name.
        taken: requests taken since the step was opened; the parent puts some back.
    """

    def __init__(self, live: LiveTable, next_rows: NextRows, by_priority: bool = False) -> None:
        self._live = live
        self._next_rows = next_rows
        self._queued: OrderedDict[str, Any] = OrderedDict()
        self._of_class: Counter[int] = Counter()  # how many wait
        self._by_priority = self.believes_clients = self.classes_matter = by_priority
        self.parked: set[str] = set()
        self._arrival_order = ArrivalOrder(live) if by_priority else None
        self._head = 0
        self._tail = 0
        self._in_order = False
        self._front: list[int] | None = None
        self._exhausted = False
        self.taken: list[Any] = []

    def open_step(self, in_order: bool, front: list[int] | None = None) -> None:
        """Start a step.

        Args:
            in_order: serve in the policy's order; otherwise as queued.
            front: the only rows to serve in this step, where they are already chosen.
        """
        self._in_order = in_order
        self._exhausted = front is not None
        self._front = None if front is None else front[::-1]
        self.taken.clear()

    def close_step(self) -> list[int]:
        """End a step: the frozen order is forgotten.

        Returns:
            Rows of the requests that were taken in it and have not been put back.
        """
        self._in_order = False
        self._front = None
        if not self.taken:
            return []
        return [
            self._live.row(request.request_id)
            for request in self.taken
            if request.request_id not in self._queued and request.request_id in self._live
        ]

    def add_request(self, request: Any) -> None:
        """Append at the tail; vLLM adds a session anew whose turn ends while it is queued."""
        self.remove_request(request)
        self._tail += 1
        self._queued[request.request_id] = request
        self._place(request, self._tail)

    def prepend_request(self, request: Any) -> None:
        """Put back at the head, ahead of its equals."""
        self._head -= 1
        self._queued[request.request_id] = request
        self._queued.move_to_end(request.request_id, last=False)
        self._place(request, self._head)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Put several back at the head, one after the other."""
        for request in requests:
            self.prepend_request(request)

    def peek_request(self) -> Any:
        """The next request of the step's order."""
        if not self._in_order:
            if not self._queued:
                raise IndexError("peek from an empty queue")
            if self._arrival_order is not None:
                return min(self._queued.values())  # vLLM's own order of requests
            return next(iter(self._queued.values()))
        row = self._front_row()
        if row is None:
            raise IndexError("peek from an empty queue")
        return self._live.request(row)

    def pop_request(self) -> Any:
        """Take the request that `peek_request` shows."""
        request = self.peek_request()
        del self._queued[request.request_id]
        self._leave(request, RUNNING)
        if self._in_order and self._front:
            self._front.pop()
        self.taken.append(request)
        return request

    def remove_request(self, request: Any) -> None:
        """Remove one request; one that is not here is ignored, as the parent asks both queues."""
        if self._queued.pop(request.request_id, None) is not None:
            self._leave(request, PARKED)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Remove several requests, each in constant time."""
        for request in requests:
            self.remove_request(request)

    def forget(self, request: Any) -> None:
        """A request has ended; called while it still has its row.

        It may still be queued: output that was in flight when it was preempted can end it.
        """
        self.remove_request(request)
        if self._arrival_order is not None:
            self._arrival_order.forget(request.request_id)

    def of_class(self, priority: int) -> int:
        """How many of a priority class wait."""
        return self._of_class[priority]

    def believed_class(self, request: Any) -> int:
        """The priority class of a request that arrives."""
        priority = priority_class(request) if self.believes_clients else 0
        self.classes_matter |= priority != 0
        return priority

    def believe_clients(self, believes: bool) -> None:
        """Whether requests' own priorities count; where vLLM's order goes by them, they always do.
        If that has changed, all requests have other classes."""
        believes |= self._by_priority
        if believes == self.believes_clients:
            return
        self.believes_clients, self.classes_matter = believes, self._by_priority
        for request_id in self._live.request_ids():
            row = self._live.row(request_id)
            self._live.table["priority"][row] = self.believed_class(self._live.request(row))
        self._of_class = Counter(self._class_of(request_id) for request_id in self._queued)

    def note_parked(self, holders: Iterable[Any]) -> None:
        """Those that hold KV and wait do not run."""
        parked = {request.request_id for request in holders}
        for request_id in parked ^ self.parked:
            if request_id in self._live:
                row = self._live.row(request_id)
                running = is_running(self._live.request(row))
                if request_id in parked or running:
                    self._live.table["state"][row] = RUNNING if running else PARKED
        self.parked = parked

    def __bool__(self) -> bool:
        # Asked before the parent knows whether a slot is free: do not rank just for that.
        if self._in_order and (self._front is not None or self._exhausted):
            return self._front_row() is not None
        return bool(self._queued)

    def __len__(self) -> int:
        return len(self._queued)

    def __iter__(self) -> Iterator[Any]:
        queued = list(self._queued.values())
        return iter(queued if self._arrival_order is None else sorted(queued))

    def queued(self) -> Iterator[Any]:
        """Those that wait, in the order in which they were queued, without a copy of them all."""
        return iter(self._queued.values())

    def __getitem__(self, place: int) -> Any:
        return list(self)[place]

    def _place(self, request: Any, sequence: int) -> None:
        row = self._live.row(request.request_id)
        self._live.table["state"][row] = WAITING
        self._of_class[self._class_of(request.request_id)] += 1
        if self._arrival_order is None:
            self._live.table["sequence"][row] = sequence
        else:
            self._arrival_order.place(request)

    def _leave(self, request: Any, state: int) -> None:
        """A request is queued no longer."""
        self._live.table["state"][self._live.row(request.request_id)] = state
        priority = self._class_of(request.request_id)
        self._of_class[priority] -= 1
        if not self._of_class[priority]:
            del self._of_class[priority]

    def _class_of(self, request_id: str) -> int:
        return int(self._live.table["priority"][self._live.row(request_id)])

    def _front_row(self) -> int | None:
        """The row to serve next, asking for more when those at hand are used up."""
        if not self._front and not self._exhausted:
            self._front = self._next_rows()[::-1]
            self._exhausted = not self._front
        return self._front[-1] if self._front else None


class ArrivalOrder:
    """Keeps the column `sequence` of live requests in the order of their arrival times, as vLLM's
    own queue does under `--scheduling-policy priority`.

    Requests may reach the engine in another order than they reached the servers in front of it
    (several API servers, a prompt that takes long to tokenize). Stock vLLM then goes by arrival
    time and, where that is the same, by name; so does this, and a preempted request goes back to
    its place.

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
