"""What a router knows of its replicas; the same in Ray Serve and simulated.

It knows what it has sent: each request's predicted work, in output tokens, is booked with its
replica until its answer has ended. What other routers have sent is known as a number, which may be
old.

Adding booked work up is a poor measure of a wait. An engine serves many requests at once, and one
long answer takes one of its slots, however long it is. So the router keeps a rough copy of every
replica: who has a slot there, since when, and who waits.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled

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
