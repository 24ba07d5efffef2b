"""What a router knows of its replicas, and which of them a request goes to.

The same functions route in Ray Serve and simulated. A router knows what it has sent: each request's
predicted work, in output tokens, is booked with its replica until its answer has ended. What other
routers have sent is known as a number, which may be old.

Adding booked work up is a poor measure of a wait. An engine serves many requests at once, and one
long answer takes one of its slots, however long it is. So the router keeps a rough copy of every
replica: who has a slot there, since when, and who waits. From that follows the *predicted wait*:

- where a slot is free, nothing;
- else the time until one is, once all who go first there have been given theirs (everybody, where
  the engine serves in the order of arrival, and the shorter ones, where it is length-aware), and
  what the newcomer costs those who then go after it: its own length, for each of them, by slot.

The newcomer goes where that is least. One exception keeps short requests from waiting behind long
ones: where every replica is full, a long request goes to the replica with the most work among those
that make it wait little longer, in proportion to its own length. Long requests then keep each other
company, and the others stay short of them. (That is size-interval task assignment without fixed
intervals: Harchol-Balter, Crovella and Murta, "On choosing a task assignment policy for a
distributed server system", 1999.)

Many routers with old news all choose the replica that seemed the least loaded, until the next news:
they herd. Looking at two replicas only, drawn at random, is the old remedy, for waits as for
numbers (Mitzenmacher, "How useful is old information?", 2000).
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.select import list_schedule

NOBODY: Final = -1
COMPANY: Final = 1.0  #: of its own length, what a long request waits longer to join others
_PACE_S: Final = 0.02  #: a predicted token takes, until it has been measured
_KEPT: Final = 0.99  #: of what was measured before, with each request

#: A request that was sent and has not ended.
BOOKING: Final = np.dtype(
    [
        ("expected", np.float64),  # predicted output tokens
        ("started_s", np.float64),  # when it got its slot, as far as the copy knows; NaN: it waits
        ("replica", np.int64),
        ("before", np.int64),  # in the order in which they were booked with the replica; NOBODY
        ("after", np.int64),
    ],
    align=True,
)

#: A replica as one router knows it.
REPLICA: Final = np.dtype(
    [
        ("first", np.int64),  # booking, NOBODY for none
        ("last", np.int64),
        ("count", np.int64),  # of own bookings
        ("running", np.int64),  # of them, those that have a slot
        ("work", np.float64),  # predicted tokens of own bookings
        ("elsewhere", np.int64),  # requests that others have sent, when last heard
        ("elsewhere_work", np.float64),  # their predicted tokens
        ("open", np.bool_),  # whether it takes another request
    ],
    align=True,
)

#: What is the same for all replicas of a router.
ROUTER: Final = np.dtype(
    [
        ("slots", np.int64),  # requests that run at once on one replica
        ("shortest_first", np.bool_),  # whether replicas serve short requests first
        ("company", np.float64),  # see COMPANY
        # Of requests that had a slot, with those of long ago forgotten.
        ("seconds", np.float64),
        ("tokens", np.float64),  # predicted
        # Of requests that were booked, likewise.
        ("booked_tokens", np.float64),
        ("booked", np.float64),
    ],
    align=True,
)


class Fleet(NamedTuple):
    """All that a router knows."""

    bookings: NDArray[np.void]  # BOOKING; whose row is whose is the caller's to say
    replicas: NDArray[np.void]  # [k], REPLICA
    router: NDArray[np.void]  # [1], ROUTER


def new_replicas(*shape: int) -> NDArray[np.void]:
    """Replicas to which nothing has been sent."""
    replicas = np.zeros(shape, REPLICA)
    replicas["first"] = replicas["last"] = NOBODY
    replicas["open"] = True
    return replicas


def new_routers(
    *shape: int, slots: int, shortest_first: bool, company: float = COMPANY
) -> NDArray[np.void]:
    """Routers that have measured nothing yet."""
    routers = np.zeros(shape, ROUTER)
    routers["slots"], routers["shortest_first"] = slots, shortest_first
    routers["company"] = company
    routers["seconds"], routers["tokens"] = _PACE_S, 1.0
    return routers


@compiled
def book(fleet: Fleet, b: int, k: int, expected: float, now: float) -> None:
    """A request was sent to a replica.

    Args:
        fleet: written.
        b: its row in `bookings`, which is free.
        k: the replica.
        expected: its predicted output tokens.
        now: s.
    """
    booking, replica, router = fleet.bookings[b], fleet.replicas[k], fleet.router[0]
    booking.expected, booking.replica = expected, k
    booking.started_s = np.nan
    booking.before, booking.after = replica.last, NOBODY
    if replica.last == NOBODY:
        replica.first = b
    else:
        fleet.bookings[replica.last].after = b
    replica.last = b
    replica.count += 1
    replica.work += expected
    router.booked_tokens = _KEPT * router.booked_tokens + expected
    router.booked = _KEPT * router.booked + 1.0
    _start_waiting(fleet, k, now)


@compiled
def release(fleet: Fleet, b: int, now: float) -> None:
    """A request has ended, or will not be served where it was sent.

    Args:
        fleet: written.
        b: its row in `bookings`.
        now: s.
    """
    booking, router = fleet.bookings[b], fleet.router[0]
    k = booking.replica
    replica = fleet.replicas[k]
    if booking.before == NOBODY:
        replica.first = booking.after
    else:
        fleet.bookings[booking.before].after = booking.after
    if booking.after == NOBODY:
        replica.last = booking.before
    else:
        fleet.bookings[booking.after].before = booking.before
    replica.count -= 1
    # Nothing is left of rounding once nobody is there.
    replica.work = replica.work - booking.expected if replica.count > 0 else 0.0
    if not np.isnan(booking.started_s):
        replica.running -= 1
        router.seconds = _KEPT * router.seconds + max(now - booking.started_s, 0.0)
        router.tokens = _KEPT * router.tokens + booking.expected
    _start_waiting(fleet, k, now)


@compiled
def hear(fleet: Fleet, k: int, elsewhere: int, elsewhere_work: float, now: float) -> None:
    """Note what others have sent to a replica: how many requests, of how many predicted tokens."""
    replica = fleet.replicas[k]
    replica.elsewhere, replica.elsewhere_work = elsewhere, elsewhere_work
    _start_waiting(fleet, k, now)


@compiled
def _start_waiting(fleet: Fleet, k: int, now: float) -> None:
    """Give free slots of the copy to those that wait, as the engine would."""
    replica, router = fleet.replicas[k], fleet.router[0]
    while replica.running < replica.count and replica.running + replica.elsewhere < router.slots:
        chosen = NOBODY
        b = replica.first
        while b != NOBODY:
            booking = fleet.bookings[b]
            if np.isnan(booking.started_s) and (
                chosen == NOBODY or booking.expected < fleet.bookings[chosen].expected
            ):
                chosen = b
                if not router.shortest_first:
                    break
            b = booking.after
        fleet.bookings[chosen].started_s = now
        replica.running += 1


@compiled
def mean_expected(fleet: Fleet) -> float:
    """Predicted tokens of a request, in the mean of the last ones."""
    router = fleet.router[0]
    return float(router.booked_tokens / router.booked) if router.booked > 0.0 else 1.0


@compiled
def outstanding(fleet: Fleet, k: int) -> int:
    """Requests that a replica has, as far as this router knows."""
    return int(fleet.replicas[k].count + fleet.replicas[k].elsewhere)


@compiled
def booked_work(fleet: Fleet, k: int) -> float:
    """Their predicted tokens."""
    return float(fleet.replicas[k].work + fleet.replicas[k].elsewhere_work)


#: How a request finds its replica; all look at it as it arrives.
ROUTERS: Final = (
    "round-robin",
    "least-outstanding",
    "power-of-two",
    "least-predicted-work",
    "predicted-wait",
    "predicted-wait-of-two",
)
ROUND_ROBIN: Final = 0
LEAST_OUTSTANDING: Final = 1
POWER_OF_TWO: Final = 2
LEAST_WORK: Final = 3
PREDICTED_WAIT: Final = 4
WAIT_OF_TWO: Final = 5
PREDICTS: Final = ROUTERS[LEAST_WORK:]  #: those that need predictions

LONG: Final = 2.0  #: times the mean: from where on a request is a long one
_LEAST_LEFT: Final = 0.05  #: of its prediction, for a request that has outlived it


@compiled
def predicted_wait(fleet: Fleet, k: int, expected: float, now: float) -> float:
    """What sending a request to a replica costs, in s: its wait there, and that of others for it.

    Args:
        fleet: what the router knows.
        k: the replica.
        expected: the request's predicted output tokens.
        now: s.
    """
    replica, router = fleet.replicas[k], fleet.router[0]
    if replica.count + replica.elsewhere < router.slots:
        return 0.0
    pace = router.seconds / router.tokens
    free_s = np.zeros(router.slots)  # when each slot is free
    jobs = np.empty(replica.count + replica.elsewhere + 1)  # of those that go first, in s
    running, ahead, behind = 0, 0, 0
    b = replica.first
    while b != NOBODY:
        booking = fleet.bookings[b]
        whole = pace * booking.expected
        if not np.isnan(booking.started_s) and running < router.slots:
            free_s[running] = max(whole - (now - booking.started_s), _LEAST_LEFT * whole)
            running += 1
        elif not router.shortest_first or booking.expected <= expected:
            jobs[ahead] = whole
            ahead += 1
        else:
            behind += 1
        b = booking.after
    if replica.elsewhere > 0:
        each = replica.elsewhere_work / replica.elsewhere
        for _ in range(replica.elsewhere):
            if running < router.slots:
                free_s[running] = 0.5 * pace * each
                running += 1
            elif not router.shortest_first or each <= expected:
                jobs[ahead] = pace * each
                ahead += 1
            else:
                behind += 1
    jobs[ahead] = pace * expected
    starts = np.empty(ahead + 1)
    list_schedule(free_s, jobs[: ahead + 1], starts)
    return float(starts[ahead] + behind * pace * expected / router.slots)


@compiled
def choose(
    fleet: Fleet,
    rule: int,
    expected: float,
    saved_s: NDArray[np.float64],
    turn: int,
    first: int,
    second: int,
    now: float,
) -> int:
    """The replica that a request goes to.

    Args:
        fleet: what the router knows.
        rule: index into ROUTERS.
        expected: the request's predicted output tokens.
        saved_s: with the rule `predicted-wait`, s that each replica saves because it has seen the
            beginning of the prompt; empty for nothing.
        turn: how many requests came before, for `round-robin`.
        first: a replica drawn at random, for the rules that look at two.
        second: another.
        now: s.

    Returns:
        Its index; NOBODY if none is open.
    """
    replicas = fleet.replicas
    if rule == ROUND_ROBIN:
        for step in range(len(replicas)):
            k = (turn + step) % len(replicas)
            if replicas[k].open:
                return int(k)
        return NOBODY
    if rule == PREDICTED_WAIT:
        return _least_wait(fleet, expected, saved_s, now)
    if rule in (POWER_OF_TWO, WAIT_OF_TWO):
        if replicas[first].open and replicas[second].open:
            return _better_of(fleet, rule, expected, first, second, now)
        if replicas[first].open or replicas[second].open:
            return first if replicas[first].open else second
    if rule == LEAST_WORK:
        return _least(fleet, replicas["work"] + replicas["elsewhere_work"])
    # LEAST_OUTSTANDING, and the rules that look at two where both are closed.
    return _least(fleet, replicas["count"] + replicas["elsewhere"])


@compiled
def _better_of(
    fleet: Fleet, rule: int, expected: float, first: int, second: int, now: float
) -> int:
    """The one where a request waits less, or else the one that has fewer; the first if equal."""
    if rule == WAIT_OF_TWO:
        one = predicted_wait(fleet, first, expected, now)
        other = predicted_wait(fleet, second, expected, now)
        if one != other:
            return first if one < other else second
    return first if outstanding(fleet, first) <= outstanding(fleet, second) else second


@compiled
def _least_wait(fleet: Fleet, expected: float, saved_s: NDArray[np.float64], now: float) -> int:
    replicas, router = fleet.replicas, fleet.router[0]
    if len(saved_s) == 0:
        # Where somebody has a free slot nothing else need be looked at.
        idlest = _least(fleet, replicas["count"] + replicas["elsewhere"])
        if idlest == NOBODY or outstanding(fleet, idlest) < router.slots:
            return idlest
    costs = np.full(len(replicas), np.inf)
    best, best_count, least_wait = NOBODY, 0, np.inf
    for k in range(len(replicas)):
        if not replicas[k].open:
            continue
        wait = predicted_wait(fleet, k, expected, now)
        costs[k] = wait - saved_s[k] if len(saved_s) > 0 else wait
        least_wait = min(least_wait, wait)
        count = outstanding(fleet, k)
        if best == NOBODY or (costs[k], count) < (costs[best], best_count):
            best, best_count = k, count
    if best == NOBODY or least_wait == 0.0 or expected <= LONG * mean_expected(fleet):
        return best
    most = costs[best] + router.company * expected * router.seconds / router.tokens
    heaviest = -1.0
    for k in range(len(replicas)):
        work = booked_work(fleet, k)
        if costs[k] <= most and work > heaviest:
            best, heaviest = k, work
    return best


@compiled
def _least(fleet: Fleet, loads: NDArray[Any]) -> int:
    """The first of those that take a request whose load is least."""
    best = NOBODY
    for k in range(len(fleet.replicas)):
        if fleet.replicas[k].open and (best == NOBODY or loads[k] < loads[best]):
            best = k
    return best
