"""Requests in the order in which they arrive, where later turns of a session wait for earlier ones.

The next turn of a session is sent its delay after the answer to the last one has come, so that when
it arrives is not known before. Requests of no session arrive when their trace says.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.workload.trace import Trace

Integers = NDArray[np.int64]


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
