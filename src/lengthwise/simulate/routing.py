"""The routers in front of simulated engines, and what each of them knows.

A router hears of an end of its own requests when it comes. Of what other routers have sent it
hears now and then; what it hears is up to `stale_s` old. With one router, or none of it old, it
knows how many requests every engine has.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.policy.fleet import (
    BOOKING,
    NOBODY,
    Fleet,
    book,
    hear,
    new_replicas,
    new_routers,
    release,
)
from lengthwise.policy.replicas import ROUTERS, choose
from lengthwise.simulate.replica import Integers

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
