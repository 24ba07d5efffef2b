"""Who runs in a step among running, paused and waiting requests, where pausing costs nothing.

A paused request is left out of the steps; it keeps its KV and its place in the worker, and goes on
later as if nothing had happened. So no swap costs a recompute, and one rule is left: a swap must
not be expected to lose. It is not free of risk, since predictions err. In order:

1. Where the running requests want more blocks than are free, the worst paused ones are freed for
   real, so that the engine does not have to throw out one that runs.
2. Free slots go to paused and waiting requests in one order. While no newcomer can come in, paused
   ones go on; somebody always runs.
3. Paused requests whose stall has reached its bound take the place of the worst that run behind
   them.
4. Other paused and waiting requests take the places of running ones where completion times are no
   worse for it: lengths are expected remaining ones given the age, and a newcomer's prompt counts
   as work. With a short queue both ways are equal, and the newcomer's first token comes sooner.
   What is expected to be needed until the newcomer ends has to be free.
5. Where a newcomer finds no memory, and host memory holds copies of what is computed, it takes that
   of a running one if this pays for a load (`policy.offloading`).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.borrowed import borrowed
from lengthwise.policy.draft import (
    PAUSES,
    RUNS,
    Draft,
    adapter_fits,
    comes_in,
    free_worst,
    growth_meanwhile,
    keep,
    last_to_lend,
    new_draft,
    pause,
    resume,
)
from lengthwise.policy.facts import swaps_are_due
from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.policy.memory import let_in
from lengthwise.policy.offloading import may_load, preempt_by_load
from lengthwise.policy.order import Order, place_in_order, precedes, ranks_behind
from lengthwise.policy.peek import choose_peeks, end_looks, settle_looks
from lengthwise.policy.select import LOOKAHEAD, Rows, growth, steps_saved, uncached_tokens
from lengthwise.request import PAUSED, RUNNING, WAITING

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


@compiled
def decide_with_pauses(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    ready: NDArray[np.bool_],
) -> tuple[Rows, Rows, bool, Rows, Rows]:
    """`prepass.decide` where those that make way are paused; memory is not put in order yet."""
    newcomers = waiting[ready]
    count = let_in(rules, facts, runners, order, waiting, ready)
    limited = count < min(len(waiting), facts.free_slots)
    if limited:
        newcomers = waiting[:count][ready[:count]]
    if not facts.may_swap or facts.admissions < facts.promised:
        newcomers = newcomers[:0]  # newcomers are held back, or did not come when they should
    swaps = swaps_are_due(rules, facts)
    active = end_looks(facts, runners, order) if rules.peeks else runners
    freed, kept, paused, front = choose_active(rules, facts, active, order, newcomers, swaps)
    settle_looks(facts, runners, active, order, kept, paused)
    if swaps:
        facts.looked_at = facts.arrivals
        if rules.peeks and len(freed) == 0:
            kept, paused, front = choose_peeks(
                rules, facts, runners, order, newcomers, kept, paused, front
            )
    # Where nobody is left out, the engine lets in whom it can.
    limited = limited or len(freed) > 0 or len(paused) > 0
    facts.promised = facts.admissions + len(front) if limited else 0
    return freed, front, limited, kept, paused


@compiled
def choose_active(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    swaps: bool,
) -> tuple[Rows, Rows, Rows, Rows]:
    """Who runs, who is paused and who is freed; states and times of pauses are written.

    Of those that are freed, whoever is not PAUSED by then makes way for a newcomer.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER, the running ones first. `may_make_way`: a running one may be
            paused, a paused one may be freed.
        order: of all requests.
        waiting: the waiting rows that may come in, in order.
        swaps: whether requests may swap places in this step.

    Returns:
        Places among the runners of those that are freed, of those that run and of those that are
        paused, and the waiting rows that come in.
    """
    own = new_draft(facts, len(runners), len(waiting))
    draft: Draft = borrowed(own)
    loads, goes_on = swaps and may_load(rules, facts), facts.leaving > 0
    facts.leaving = 0
    for place in range(len(runners)):
        if not runners[place].paused:
            keep(facts, runners, draft, place)
    resting = _resting(order, runners)
    free_worst(runners, resting, draft, 0, -1)
    asked = _fill_slots(facts, runners, order, waiting, resting, draft)
    if swaps:
        resume_overdue(facts, runners, order, resting, draft)
        swap_places(rules, facts, runners, order, waiting[asked:], resting, draft)
    if loads:
        facts.leaving = preempt_by_load(
            rules, facts, runners, order, waiting, resting, draft, goes_on
        )
    return _settle(facts, runners, order, resting, own)


@compiled
def _resting(order: Order, runners: NDArray[np.void]) -> Rows:
    """Places of the paused requests, in order."""
    places = np.empty(len(runners), np.int64)
    size = 0
    for place in range(len(runners)):
        if not runners[place].paused:
            continue
        # Insertion sort: they were put down in order, or nearly.
        hole = size
        size += 1
        while hole > 0 and precedes(order, runners[place].row, runners[places[hole - 1]].row):
            places[hole] = places[hole - 1]
            hole -= 1
        places[hole] = place
    return places[:size]


@compiled
def _fill_slots(
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    resting: Rows,
    draft: Draft,
) -> int:
    """Give free slots to paused and waiting requests in one order.

    Returns:
        How many of the waiting rows have been asked, with those behind one that found no room.
    """
    left = draft.left[0]
    asked, cursor = 0, 0
    while left.slots > 0:
        while cursor < len(resting) and draft.fate[resting[cursor]] != PAUSES:
            cursor += 1
        if cursor == len(resting) and asked == len(waiting):
            break
        if asked < len(waiting) and (
            cursor == len(resting)
            or not precedes(order, runners[resting[cursor]].row, waiting[asked])
        ):
            row = waiting[asked]
            asked += 1
            if not adapter_fits(facts, runners, order, draft, row, -1):
                continue
            if comes_in(facts, order, draft, row, 0):
                left.slots -= 1
            else:
                asked = len(waiting)  # nobody behind it is let in before it
            continue
        place = resting[cursor]
        cursor += 1
        if not adapter_fits(facts, runners, order, draft, runners[place].row, -1):
            continue
        needed = growth(facts, runners[place])
        free_worst(runners, resting, draft, needed, place)
        if needed > left.blocks and (facts.running > 0 or left.resumed > 0 or left.admitted > 0):
            break  # somebody runs, and gives blocks back
        resume(draft, place)
        left.slots -= 1
        left.blocks -= needed
        left.tokens -= runners[place].wanted_tokens
    return asked


@compiled
def _settle(
    facts: Any, runners: NDArray[np.void], order: Order, resting: Rows, draft: Draft
) -> tuple[Rows, Rows, Rows, Rows]:
    """What `choose_active` returns, once all has been decided."""
    table, left = order.table, draft.left[0]
    running = np.empty(len(runners), np.int64)
    size = 0
    for place in range(len(runners)):
        if draft.fate[place] == RUNS and not runners[place].paused:
            running[size] = place
            size += 1
    for place in draft.resumed[: left.resumed]:
        if draft.fate[place] != RUNS:
            continue
        running[size] = place
        size += 1
        table[runners[place].row].state = RUNNING
    paused = np.empty(len(runners), np.int64)
    length = 0
    for place in resting:
        if draft.fate[place] == PAUSES:
            paused[length] = place
            length += 1
    for place in draft.paused[: left.paused]:
        paused[length] = place
        length += 1
        request = table[runners[place].row]
        if request.state != PAUSED:  # else it would have gone on in this very step
            request.pauses += 1
            request.paused_s = facts.now_s
        request.state = PAUSED
    admitted = draft.admitted[: left.admitted]
    return draft.freed[: left.freed], running[:size], paused[:length], admitted
