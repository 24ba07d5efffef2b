"""A request's turn: who is kept back, who goes, and to which upstream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from lengthwise.gateway.limits import RefusedError, Room
from lengthwise.gateway.ranked_queue import Entry, Queue
from lengthwise.gateway.upstream import Pool, Upstream


class Dispatcher:
    """Lets requests go while upstreams have room, in the queue's order.

    Everything happens in one event loop. Whatever may let somebody go calls `wake`.

    Args:
        queue: whose order it is.
        pool: the upstreams.
        room: what may wait, and for how long.
        clock: monotonic, s.
    """

    def __init__(
        self, queue: Queue, pool: Pool, room: Room, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.queue, self.pool, self.room = queue, pool, room
        self._clock = clock
        self._turns: dict[Entry, asyncio.Future[Upstream]] = {}
        self._taken: dict[Entry, tuple[Upstream, int]] = {}
        self._closed: str | None = None  # why nobody goes any more

    def add(self, entry: Entry) -> int:
        """Queue a request. `release` must follow, whatever happens.

        Returns:
            Its arrival index.
        """
        self._turns[entry] = self._turn()
        return self.queue.add(entry, self._clock())

    async def turn(self, entry: Entry, until_s: float) -> Upstream:
        """Wait until a request that was added may go, and take its slots.

        Args:
            entry: the request.
            until_s: by the clock, when it has waited too long.

        Raises:
            RefusedError: it waited too long, or the gateway ends.
        """
        turn = self._turns[entry]
        if self._closed is not None:
            raise _closed(self._closed)
        try:
            self.wake()
            if not turn.done():
                await asyncio.wait({turn}, timeout=max(until_s - self._clock(), 0.0))
            if turn.done():
                return turn.result()
        finally:
            self._turns.pop(entry, None)
        raise RefusedError(
            503,
            f"waited {self.room.limits.wait_s:g} s without a turn",
            "timed_out",
            self.room.retry_after_s(),
        )

    def wake(self) -> None:
        """Let those go for whom there is room."""
        while self._closed is None and self.pool.has_room:  # else there is no need to rank all
            entry = self.queue.next(self._clock())
            upstream = None if entry is None else self.pool.choose(entry.answers)
            if entry is None or upstream is None:
                return
            slots = upstream.slots_of(entry.answers)
            upstream.in_flight += slots
            self._taken[entry] = upstream, slots
            self.queue.take(entry)
            self._turns[entry].set_result(upstream)

    def forwarded(self, entry: Entry) -> None:
        """An upstream has a request that went: it does not wait again."""
        self.queue.forwarded(entry)
        self.room.went(self._clock())

    def put_back(self, entry: Entry) -> None:
        """A request that went is not forwarded: it waits again."""
        self._give_back(entry)
        self._turns[entry] = self._turn()
        self.queue.put_back(entry)

    def release(self, entry: Entry, output_tokens: int | None = None) -> None:
        """A request has ended, or waits no longer; see `Queue.remove`."""
        self._give_back(entry)
        self._turns.pop(entry, None)
        self.queue.remove(entry, output_tokens)
        self.wake()

    def close(self, reason: str) -> None:
        """Refuse all who wait, and whoever comes: from now on nobody goes."""
        self._closed = reason
        for turn in self._turns.values():
            if not turn.done():
                turn.set_exception(_closed(reason))

    def _turn(self) -> asyncio.Future[Upstream]:
        return asyncio.get_running_loop().create_future()

    def _give_back(self, entry: Entry) -> None:
        taken = self._taken.pop(entry, None)
        if taken is not None:
            upstream, slots = taken
            upstream.in_flight -= slots


def _closed(reason: str) -> RefusedError:
    return RefusedError(503, reason, "shut_down", 1)
