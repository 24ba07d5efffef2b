"""Several engines behind a router, from event to event.

Requests come in the order in which they arrive, where later turns of a session wait for earlier
ones. The next turn is sent its delay after the answer to the last one has come, so that when it
arrives is not known before. Requests of no session arrive when their trace says.

A router hears of an end of its own requests when it comes. Of what other routers have sent it
hears now and then; what it hears is up to `stale_s` old. With one router, or none of it old, it
knows how many requests every engine has.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled, compiled_here
from lengthwise.policy.borrowed import borrowed
from lengthwise.policy.guards import Shares
from lengthwise.policy.order import Order
from lengthwise.policy.ranking import Ranking
from lengthwise.policy.replicas import (
    BOOKING,
    NOBODY,
    ROUTERS,
    Fleet,
    book,
    choose,
    hear,
    new_replicas,
    new_routers,
    release,
)
from lengthwise.simulate.kv_blocks import Memory
from lengthwise.simulate.replica import Batch, Integers, Queue, Recent, Replica, Shared
from lengthwise.simulate.slots import arrive
from lengthwise.simulate.step import run_step
from lengthwise.workload.trace import Trace


class Turns(NamedTuple):
    """Who arrives when.

    Attributes:
        order: places of requests in the order in which they arrive, as far as that is known; shape
            [n].
        known: how many of them, shape [1].
        next: the place of the request that waits for each one's end, -1 for none; of shape [0]
            where there are no sessions.
        delay_s: from the end of each request to the arrival of the next, likewise.
        open: places of requests that have arrived and that others wait for, shape [n] or [0].
        opened: how many of them, shape [1].
    """

    order: Integers
    known: Integers
    next: Integers
    delay_s: NDArray[np.float64]
    open: Integers
    opened: Integers


def new_turns(trace: Trace, delay_s: float) -> Turns:
    """The turns of a trace of which nothing has arrived.

    Args:
        trace: n requests.
        delay_s: between client and engine, there and back.
    """
    n = len(trace)
    none, opened = np.zeros(0, np.int64), np.zeros(1, np.int64)
    if trace.after is None or trace.delay_s is None:
        return Turns(np.arange(n), np.array([n]), none, np.zeros(0), none.copy(), opened)
    (later,) = np.nonzero(trace.after >= 0)
    (first,) = np.nonzero(trace.after < 0)
    following, delays = np.full(n, -1), np.zeros(n)
    following[trace.after[later]] = later
    delays[trace.after[later]] = trace.delay_s[later] + delay_s
    order = np.concatenate([first, np.full(later.size, -1)])
    return Turns(order, np.array([first.size]), following, delays, np.zeros(n, np.int64), opened)


@compiled_here
def open_turn(turns: Turns, i: int) -> None:
    """Note that a request has arrived, if another waits for its end."""
    if len(turns.next) > 0 and turns.next[i] >= 0:
        turns.open[turns.opened[0]] = i
        turns.opened[0] += 1


@compiled_here
def close_turns(turns: Turns, requests: Any) -> None:
    """Let those arrive, each after its delay, whose last turn has ended."""
    place = 0
    while place < turns.opened[0]:
        i = turns.open[place]
        ended_s = requests[i].finish_s
        if np.isnan(ended_s):
            place += 1
            continue
        turns.opened[0] -= 1
        turns.open[place] = turns.open[turns.opened[0]]
        j = turns.next[i]
        requests[j].arrival_s = ended_s + turns.delay_s[i]
        # Of those that arrive at the same time, the first in the trace is first. None of them has
        # been taken up: they cannot arrive before the end that they wait for.
        at = turns.known[0]
        while at > 0 and _is_later(requests, turns.order[at - 1], j):
            turns.order[at] = turns.order[at - 1]
            at -= 1
        turns.order[at] = j
        turns.known[0] += 1


@compiled_here
def _is_later(requests: Any, i: int, j: int) -> bool:
    """Whether a request arrives later than another, or at the same time and is behind it."""
    if requests[i].arrival_s == requests[j].arrival_s:
        return i > j
    return bool(requests[i].arrival_s > requests[j].arrival_s)


_NOTHING_SAVED = np.empty(0)


class Routing(NamedTuple):
    """All routers of a simulation. A request is booked in the row that has its place."""

    rule: int  # index into ROUTERS
    stale_s: float
    bookings: NDArray[np.void]  # [n], BOOKING
    replicas: NDArray[np.void]  # [routers, engines], REPLICA
    routers: NDArray[np.void]  # [routers, 1], ROUTER
    heard_s: NDArray[np.float64]  # [routers], when each last heard of the others
    sent: Integers  # [engines], requests whose end has not been heard of
    coins: Integers  # [n, 2], two different engines for each request, drawn at random


def new_routing(
    router: str,
    requests: int,
    engines: int,
    routers: int,
    stale_s: float,
    slots: int,
    shortest_first: bool,
    seed: int,
) -> Routing:
    """Routers that have sent nothing yet."""
    count = requests if engines > 1 else 1
    random = np.random.default_rng(seed)
    first = random.integers(engines, size=count)
    second = (first + 1 + random.integers(max(engines - 1, 1), size=count)) % engines
    return Routing(
        rule=ROUTERS.index(router),
        stale_s=stale_s,
        bookings=np.zeros(count, BOOKING),
        replicas=new_replicas(routers, engines),
        routers=new_routers(routers, 1, slots=slots, shortest_first=shortest_first),
        heard_s=np.full(routers, -np.inf),
        sent=np.zeros(engines, np.int64),
        coins=np.stack([first, second], axis=1),
    )


@compiled_here
def route(routing: Routing, engines: Any, requests: Any, arrived: int, i: int) -> int:
    """The engine that request i goes to, which is the `arrived`th to arrive."""
    if len(engines) == 1:
        return 0
    now = requests[i].arrival_s
    _hear_of_ends(routing, engines, requests, now)
    q = arrived % len(routing.replicas)
    fleet = _fleet(routing, q)
    if len(routing.replicas) > 1 and now - routing.heard_s[q] >= routing.stale_s:
        routing.heard_s[q] = now
        _hear_of_others(routing, fleet, now)
    first, second = routing.coins[arrived, 0], routing.coins[arrived, 1]
    expected = requests[i].expected
    k = choose(fleet, routing.rule, expected, _NOTHING_SAVED, arrived, first, second, now)
    return int(k)


@compiled_here
def send(routing: Routing, requests: Any, arrived: int, i: int, k: int) -> None:
    """Request i is sent to the engine that was chosen for it."""
    if len(routing.sent) > 1:
        fleet = _fleet(routing, arrived % len(routing.replicas))
        book(fleet, i, k, requests[i].expected, requests[i].arrival_s)
        routing.sent[k] += 1


@compiled_here
def _fleet(routing: Routing, q: int) -> Fleet:
    return Fleet(routing.bookings, routing.replicas[q], routing.routers[q])


@compiled_here
def _hear_of_ends(routing: Routing, engines: Any, requests: Any, now: float) -> None:
    for k in range(len(engines)):
        if routing.sent[k] == engines[k].outstanding:
            continue
        for q in range(len(routing.replicas)):
            fleet = _fleet(routing, q)
            b = fleet.replicas[k].first
            while b != NOBODY:
                after = fleet.bookings[b].after
                if requests[b].finish_s <= now:
                    release(fleet, b, requests[b].finish_s)
                    routing.sent[k] -= 1
                b = after


@compiled_here
def _hear_of_others(routing: Routing, fleet: Fleet, now: float) -> None:
    for k in range(len(fleet.replicas)):
        work = 0.0
        for q in range(len(routing.replicas)):
            work += routing.replicas[q, k].work
        own = fleet.replicas[k]
        hear(fleet, k, routing.sent[k] - own.count, work - own.work, now)


# Why `advance` came back.
DONE: Final = 0  #: every request has been served
PAUSED: Final = 1  #: as many steps as it was asked for
MORE_ROWS: Final = 2  #: more requests are there than the tables hold
MORE_MEMORY: Final = 3  #: more requests have been preempted than can be remembered
STUCK: Final = 4  #: requests wait and none can run


class Cluster(NamedTuple):
    """All engines of a simulation and all that happens to them.

    Attributes:
        ranking: how the discipline ranks.
        rules: array of one RULES record.
        limits: array of one LIMITS record, of each engine.
        terms: `StepCost.terms`.
        times: array of STEP_TIME, one for each engine.
        engines: array of ENGINE.
        requests: array of SERVED, in the order of the trace.
        turns: who arrives when.
        shared: what prompts share.
        queues: of all engines.
        recents: of all engines.
        batches: of all engines.
        memories: of all engines.
        token_times: s from arrival of every token; empty where none are kept.
        token_offsets: where each request's begin.
        routing: who sends requests to which engine.
    """

    ranking: Ranking
    rules: NDArray[np.void]
    limits: NDArray[np.void]
    terms: NDArray[np.float64]
    times: NDArray[np.void]
    engines: NDArray[np.void]
    requests: NDArray[np.void]
    turns: Turns
    shared: Shared
    queues: Queue
    recents: Recent
    batches: Batch
    memories: Memory
    token_times: NDArray[np.float32]
    token_offsets: Integers
    routing: Routing


@compiled
def advance(
    cluster: Cluster, log: NDArray[np.void], arrived: int, steps: int
) -> tuple[int, int, int]:
    """Simulate until something is needed from outside, or for a number of steps.

    Args:
        cluster: written.
        log: array of STEP for the steps from here on; of length 1 where none is wanted.
        arrived: how many requests have arrived before.
        steps: how many steps to take.

    Returns:
        Why it came back, how many requests have arrived, and the steps taken.
    """
    whole: Cluster = borrowed(cluster)
    engines, requests, turns = whole.engines, whole.requests, whole.turns
    rules, limits, routing = whole.rules[0], whole.limits[0], whole.routing
    rows, most = whole.queues.request.shape[1], whole.memories.remembered.shape[1]
    queues, batches, memories = whole.queues, whole.batches, whole.memories
    orders, shares = queues.order, queues.shares
    taken, viewed = 0, -1
    while taken < steps:
        r = 0
        for k in range(1, len(engines)):
            if engines[k].plans_s < engines[r].plans_s:
                r = k
        i = -1
        if arrived < turns.known[0]:
            i = turns.order[arrived]
            if requests[i].arrival_s > engines[r].plans_s:
                i = -1
        if i >= 0:
            r = route(routing, engines, requests, arrived, i)
            if engines[r].live >= rows:
                return MORE_ROWS, arrived, taken
            requests[i].engine = r
            send(routing, requests, arrived, i, r)
        elif engines[r].plans_s == math.inf:
            return DONE, arrived, taken
        elif engines[r].remembered + engines[r].running + engines[r].paused > most:
            return MORE_MEMORY, arrived, taken
        if viewed != r:
            viewed = r
            replica: Replica = borrowed(
                Replica(
                    limits,
                    rules,
                    whole.ranking,
                    whole.terms,
                    whole.times[r],
                    engines[r],
                    requests,
                    whole.shared,
                    Queue(
                        Order(orders.table[r], orders.groups[r], orders.ranks[r]),
                        queues.request[r],
                        queues.admitted[r],
                        Shares(shares.tenants[r], shares.least[r]),
                    ),
                    Recent(whole.recents.predictions[r], whole.recents.median[r]),
                    Batch(batches.slots[r], batches.running[r], batches.paused[r], batches.free[r]),
                    Memory(
                        memories.blocks[r],
                        memories.shared[r],
                        memories.of_slot[r],
                        memories.remembered[r],
                        memories.free_remembered[r],
                        memories.runs[r],
                    ),
                    whole.token_times,
                    whole.token_offsets,
                )
            )
        engine = replica.engine
        if i >= 0:
            arrive(replica, i)
            open_turn(turns, i)
            arrived += 1
            continue
        step = log[taken] if len(log) > 1 else log[0]
        step.engine = r
        ran = run_step(replica, step)
        if turns.opened[0] > 0:
            close_turns(turns, requests)
        if ran:
            taken += 1
        elif engine.running == 0 and engine.waiting + engine.paused > 0:
            return STUCK, arrived, taken
    return PAUSED, arrived, taken
