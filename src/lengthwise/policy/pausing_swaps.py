"""Paused and waiting requests take the places of running ones, where pausing costs nothing.

Whose stall has reached its bound goes first, in the place of the worst that runs behind it. Others
swap places where completion times are no worse for it: lengths are expected remaining ones given
the age, and a newcomer's prompt counts as work. With a short queue both ways are equal, and the
newcomer's first token comes sooner. What is expected to be needed until the newcomer ends has to be
free.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.draft import (
    PAUSES,
    RUNS,
    Draft,
    adapter_fits,
    comes_in,
    free_worst,
    growth_meanwhile,
    last_to_lend,
    pause,
    resume,
)
from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.policy.order import Order, place_in_order, precedes, ranks_behind
from lengthwise.policy.rollout import LOOKAHEAD, steps_saved
from lengthwise.policy.select import Rows, growth, uncached_tokens
from lengthwise.request import WAITING

#: How much longer than the newcomer's work the victim's must be: predictions err, and who looks
#: shortest of many is mostly longer than that.
MARGIN: Final = 0.25

#: Steps that a swap may lose: where both ways are equal, somebody gets its first token sooner, and
#: a sum's last digit must not decide.
MOST_LOSS: Final = 1e-6


@compiled
def resume_overdue(
    facts: Any, runners: NDArray[np.void], order: Order, resting: Rows, draft: Draft
) -> None:
    """Those that have been paused for as long as they may take the place of the worst that run.

    Args:
        facts: a FACTS record.
        runners: array of RUNNER.
        order: of all requests.
        resting: places of all that were paused, in order.
        draft: written.
    """
    left = draft.left[0]
    for place in resting:
        row = runners[place].row
        if order.groups[row] % TIERS != OVERDUE or draft.fate[place] != PAUSES:
            continue
        lends = np.empty(len(runners), np.bool_)
        for k in range(len(runners)):
            lends[k] = ranks_behind(order, runners[k].row, row)
        victim = last_to_lend(facts, runners, order, draft, row, lends)
        if victim < 0:
            continue
        left.blocks += growth(facts, runners[victim])
        needed = growth(facts, runners[place])
        free_worst(runners, resting, draft, needed, place)
        if needed > left.blocks:
            left.blocks -= growth(facts, runners[victim])
            continue
        left.blocks -= needed
        pause(draft, victim)
        resume(draft, place)


@compiled
def swap_places(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    resting: Rows,
    draft: Draft,
) -> None:
    """Paused and waiting requests, in order, take the places of running ones as long as it pays.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER.
        order: of all requests.
        waiting: the waiting rows that are left, in order.
        resting: places of all that were paused, in order.
        draft: written.
    """
    table, left = order.table, draft.left[0]
    most = LOOKAHEAD * (facts.running + facts.free_slots)
    queue, places, length = _those_next(runners, order, waiting, resting, draft, most)
    held, remaining = _those_running(facts, runners, order, draft)
    opened, swaps, victim, spare = True, 0, -1, 0
    while length > 0 and swaps < rules.max_swaps:
        row, place = queue[0], places[0]
        waits = place < 0
        if not waits and not runners[place].paused:
            break  # it has only just made way
        k = -1
        if not waits or opened:
            k = _pays(rules, facts, runners, order, draft, queue[:length], held, remaining)
            if k < 0:
                break
        fits = k >= 0
        if fits:
            victim = held[k]
            spare = growth(facts, runners[victim])
            if waits:
                needed = growth_meanwhile(facts, remaining, k, table[row].remaining)
                fits = opened = comes_in(facts, order, draft, row, spare - needed)
            else:
                fits = growth(facts, runners[place]) <= left.blocks + spare
        for j in range(1, length):
            queue[j - 1], places[j - 1] = queue[j], places[j]
        length -= 1
        if not fits:
            continue
        left.blocks += spare
        left.tokens += runners[victim].wanted_tokens
        pause(draft, victim)
        swaps += 1
        if waits:
            held[k], remaining[k] = -1, _work(facts, table[row])
        else:
            left.blocks -= growth(facts, runners[place])
            resume(draft, place)
            held[k], remaining[k] = -1, table[row].remaining
        # The victim takes its place among those that run next. As the next, it would only return.
        returns = place_in_order(order, queue[:length], runners[victim].row)
        if returns == 0:
            break
        for j in range(length, returns, -1):
            queue[j], places[j] = queue[j - 1], places[j - 1]
        queue[returns], places[returns] = runners[victim].row, victim
        length += 1


@compiled
def _those_next(
    runners: NDArray[np.void], order: Order, waiting: Rows, resting: Rows, draft: Draft, most: int
) -> tuple[Rows, Rows, int]:
    """The rows that would run next, in order; the place of each, -1 if it waits; their number."""
    queue, places = np.empty(most + 1, np.int64), np.empty(most + 1, np.int64)
    length, k, w = 0, 0, 0
    while length < most and (k < len(resting) or w < len(waiting)):
        if k < len(resting) and draft.fate[resting[k]] != PAUSES:
            k += 1
        elif k < len(resting) and (
            w == len(waiting) or precedes(order, runners[resting[k]].row, waiting[w])
        ):
            queue[length], places[length] = runners[resting[k]].row, resting[k]
            length += 1
            k += 1
        else:
            queue[length], places[length] = waiting[w], -1
            length += 1
            w += 1
    return queue, places, length


@compiled
def _those_running(
    facts: Any, runners: NDArray[np.void], order: Order, draft: Draft
) -> tuple[Rows, NDArray[np.float64]]:
    """The place of each that runs, -1 of one that comes in, and its predicted steps."""
    admitted = draft.admitted[: draft.left[0].admitted]
    held = np.empty(len(runners) + len(admitted), np.int64)
    remaining = np.empty(len(runners) + len(admitted))
    active = 0
    for place in range(len(runners)):
        if draft.fate[place] == RUNS:
            held[active] = place
            remaining[active] = order.table[runners[place].row].remaining
            active += 1
    for row in admitted:
        held[active] = -1
        remaining[active] = _work(facts, order.table[row])
        active += 1
    return held[:active], remaining[:active]


@compiled
def _work(facts: Any, request: Any) -> float:
    """What a waiting request takes of a slot, in output tokens: its prompt and its answer."""
    return float(request.remaining + facts.token_work * uncached_tokens(request))


@compiled
def _pays(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    draft: Draft,
    queue: Rows,
    held: Rows,
    remaining: NDArray[np.float64],
) -> int:
    """Where among those that run the one is whose place queue[0] should take; -1 for none."""
    newcomer = queue[0]
    jobs = np.empty(len(queue))
    for k in range(len(queue)):
        request = order.table[queue[k]]
        jobs[k] = request.remaining if request.state != WAITING else _work(facts, request)
    chosen, best = -1, -math.inf
    for k in range(len(held)):
        place = held[k]
        if place < 0 or runners[place].paused or not runners[place].may_make_way:
            continue
        if not ranks_behind(order, runners[place].row, newcomer):
            continue
        if not adapter_fits(facts, runners, order, draft, newcomer, place):
            continue
        if remaining[k] > best:
            chosen, best = k, remaining[k]
    if chosen < 0 or rules.greedy:
        return chosen
    if best < (1.0 + MARGIN) * jobs[0]:
        return -1
    returns = place_in_order(order, queue[1:], runners[held[chosen]].row)
    saved, _ = steps_saved(remaining, jobs, chosen, returns)
    return chosen if saved > -MOST_LOSS else -1
