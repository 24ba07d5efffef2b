"""Who waits, who is in flight, and whose turn it is.

The queue is the scheduler's table, ranked by the scheduler's own functions. Nothing here orders
requests. Each time that somebody can go, all who wait are ranked by the compiled ranking of the
policy and its guards (`policy.prepass`), and the first of them goes. Who goes next is never passed
over for one that takes fewer slots: it would be overtaken without a bound.

What the scheduler sees an engine do, a gateway learns when an answer has ended: how much work was
done (the guard `max_lead`) and for whom (`max_tenant_lead`) is counted then, in output tokens, as
the answer said or else as it was predicted.

The dispatcher gives turns: who is kept back, who goes, and to which upstream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np

from lengthwise.counters import Counters
from lengthwise.errors import one_line
from lengthwise.gateway.limits import RefusedError, Room
from lengthwise.gateway.upstream import Pool, Upstream
from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.policy.facts import new_facts
from lengthwise.policy.guards import Tenants, take_leads
from lengthwise.policy.length_law import UNKNOWN, stand_in
from lengthwise.policy.prepass import StepOrder
from lengthwise.predict.prediction import MOST_TOKENS, Prediction
from lengthwise.request import RUNNING, WAITING, LiveTable

logger = logging.getLogger("lengthwise.gateway")

_FCFS: Final = make_discipline("fcfs")


@dataclass(frozen=True, eq=False)
class Entry:
    """A request as the queue knows it.

    Attributes:
        id: its name, unique.
        answers: how many it asks for, each of which takes a slot.
        priority: its class, lower goes sooner.
        most_tokens: its answer is cut there; 0: not known, or it is not cut.
        deadline_s: from its arrival to when its first token is due; 0: none.
        tenant: whose it is; "" is the name of all that are not told apart.
    """

    id: str
    answers: int = 1
    priority: int = 0
    most_tokens: int = 0
    deadline_s: float = 0.0
    tenant: str = ""


class Queue:
    """Requests that wait or are in flight, each with a row of REQUEST.

    Args:
        discipline: what decides who goes next; exchanged when the settings change.
        counters: admissions, overtakes and what failed are counted there. An admission is counted
            when its request is forwarded, so that none is ever taken back.

    Attributes:
        discipline: see above.
        doubtful: predictions are not worth following: the order is fcfs.
        off: somebody has switched the policy off: the order is fcfs.
        failed: the policy has raised: the order is fcfs until somebody takes this back.
        waiting: how many wait.
    """

    def __init__(self, discipline: Discipline, counters: Counters) -> None:
        self.discipline = discipline
        self.doubtful = self.off = self.failed = False
        self.waiting = 0
        self._counters = counters
        self._of_class: Counter[int] = Counter()  # how many wait
        self._live = LiveTable()
        self._tenants = Tenants()
        self._order = StepOrder()
        self._facts = new_facts(1, token_budget=1, block_size=1)  # of which only orders are made
        self._median = Prediction(*UNKNOWN)
        self._last = 0  # place at the queue's end
        self._first = 0  # and before its front
        self._admitted: list[tuple[int, int]] = []  # arrival and class, since the last ranking
        self._going: set[Entry] = set()  # taken, and not forwarded yet
        self._tokens = 0  # of all answers that have ended
        self._ended = 0  # answers

    @property
    def arrivals(self) -> int:
        """Requests added so far; the next one's arrival index."""
        return self._live.arrivals

    @property
    def _admissions(self) -> int:
        """Those made, and those of requests that go just now: by both the order is made."""
        return self._counters.admissions + len(self._going)

    def __contains__(self, entry: Entry) -> bool:
        return entry.id in self._live

    def add(self, entry: Entry, now_s: float) -> int:
        """Queue a request at the end, ranked as the running median until it is predicted.

        Returns:
            Its arrival index.
        """
        row = self._live.add(entry.id, entry)
        columns = self._live.table[row]
        self._last += 1
        columns["state"], columns["sequence"] = WAITING, self._last
        columns["priority"] = entry.priority
        columns["arrival_s"] = now_s
        columns["last_step"] = self._admissions
        columns["ahead"] = self._of_class[entry.priority]
        columns["decoded_before"] = self._tokens
        columns["tenant"] = self._tenants.arrive(entry.tenant)
        columns["most_tokens"], columns["deadline_s"] = entry.most_tokens, entry.deadline_s
        self._write(row, self._median, predicted=False)
        self._count(entry, 1)
        return int(columns["arrival_index"])

    def next(self, now_s: float) -> Entry | None:
        """Who goes next; None where nobody waits."""
        if not self.waiting:
            return None
        discipline = _FCFS if self.doubtful or self.off or self.failed else self.discipline
        try:
            return self._next(discipline, now_s)
        except Exception as error:  # a user's policy may do anything; requests are served
            self._counters.switched_off += 1
            self.failed = True
            logger.error(
                "the policy raised, and the order is fcfs until the settings change: %s: %s",
                type(error).__name__,
                one_line(error),
            )
            return self._next(_FCFS, now_s)

    def _next(self, discipline: Discipline, now_s: float) -> Entry:
        live, admissions = self._live, self._admissions
        if discipline.shares_service:
            take_leads(self._tenants.shares, live.table, live.count)
        facts = self._facts
        facts["rows"], facts["now_s"], facts["step"] = live.count, now_s, admissions
        facts["decoded"], facts["admissions"] = self._tokens, self._ended
        admitted = np.array(self._admitted, np.int64).reshape(-1, 2)
        self._order.rank(discipline, live.table, facts, admitted, everyone=False)
        self._admitted.clear()
        (row,) = self._order.first(discipline, live.table, live.count, 1, admissions)
        entry: Entry = live.request(int(row))
        return entry

    def take(self, entry: Entry) -> None:
        """A request that waited goes. `forwarded`, `put_back` or `remove` follows.

        From now on the order knows that it has overtaken others.
        """
        columns = self._live.table[self._live.row(entry.id)]
        columns["state"] = RUNNING
        self._going.add(entry)
        self._admitted.append((int(columns["arrival_index"]), entry.priority))
        self._count(entry, -1)

    def forwarded(self, entry: Entry) -> None:
        """An upstream has a request that went: it counts as admitted."""
        self._going.remove(entry)
        self._counters.admissions += 1

    def put_back(self, entry: Entry) -> None:
        """A request that went is not forwarded: it waits again, before all that rank as it does."""
        self._withdraw(entry)
        columns = self._live.table[self._live.row(entry.id)]
        self._first -= 1
        columns["state"], columns["sequence"] = WAITING, self._first
        self._count(entry, 1)

    def _withdraw(self, entry: Entry) -> None:
        """A request that went is not forwarded.

        It has overtaken nobody, unless all were ranked meanwhile: what they count stays.
        """
        self._going.remove(entry)
        columns = self._live.table[self._live.row(entry.id)]
        with suppress(ValueError):
            self._admitted.remove((int(columns["arrival_index"]), entry.priority))

    def remove(self, entry: Entry, output_tokens: int | None = None) -> None:
        """A request has ended, or waits no longer.

        Args:
            entry: the request.
            output_tokens: of all its answers, where they said so.
        """
        columns = self._live.table[self._live.row(entry.id)]
        if columns["state"] == WAITING:
            self._count(entry, -1)
            output_tokens = 0
        elif entry in self._going:
            self._withdraw(entry)
            output_tokens = 0
        else:
            if output_tokens is None:
                # No more than an answer can say: the sum of all has 64 bits.
                expected = float(columns["expected"]) * entry.answers
                output_tokens = round(min(expected, MOST_TOKENS))
            self._tokens += output_tokens
            self._ended += 1
        self._tenants.leave(int(columns["tenant"]), int(columns["prompt_tokens"]), output_tokens)
        self._counters.finished += 1
        self._counters.overtakes += int(columns["overtaken"])
        self._live.release(entry.id)

    def is_waiting(self, entry: Entry) -> bool:
        """Whether a request is here and has not gone."""
        return entry in self and bool(
            self._live.table["state"][self._live.row(entry.id)] == WAITING
        )

    def _count(self, entry: Entry, change: int) -> None:
        """A request waits, or does so no longer."""
        self.waiting += change
        self._of_class[entry.priority] += change
        if not self._of_class[entry.priority]:
            del self._of_class[entry.priority]

    # Predictions ------------------------------------------------------------------------------

    def predict(self, entry: Entry, prediction: Prediction, prompt_tokens: int) -> None:
        """Rank a request by its prediction, cut where its answer will be."""
        row = self._live.row(entry.id)
        self._live.table["prompt_tokens"][row] = prompt_tokens
        self._write(row, prediction, predicted=True)

    def forget_predictions(self) -> None:
        """Scores of another predictor cannot be compared: all rank as if nothing was predicted."""
        self._live.table["predicted"] = 0
        self.stand_in(Prediction(*UNKNOWN))

    def stand_in(self, median: Prediction) -> None:
        """Rank those without a prediction of their own by this one."""
        self._median = median
        stand_in(self._live.table, self._live.count, *median)

    def _write(self, row: int, prediction: Prediction, predicted: bool) -> None:
        columns = self._live.table[row]
        for name in Prediction._fields:
            columns[name] = getattr(prediction, name)
        columns["initial"] = columns["remaining"] = prediction.expected
        columns["predicted"] = predicted


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
