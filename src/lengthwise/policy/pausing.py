"""Who runs in a step among running, paused and waiting requests, where pausing costs nothing.

A paused request is left out of the steps; it keeps its KV and its place in the worker, and goes on
later as if nothing had happened. So no swap costs a recompute, and one rule is left: a swap must
not be expected to lose. It is not free of risk, since predictions err. In order:

1. Where the running requests want more blocks than are free, the worst paused ones are freed for
   real, so that the engine does not have to throw out one that runs.
2. Free slots go to paused and waiting requests in one order. While no newcomer can come in, paused
   ones go on; somebody always runs.
3. Paused requests whose stall has reached its bound take the place of the worst running ones.
4. Others swap places where completion times are no worse for it (`rollout.swap_gain`, without a
   recompute): lengths are expected remaining ones given the age, and a newcomer's prompt counts as
   work. With a short queue both ways are equal, and the newcomer's first token comes sooner. What
   is expected to be needed until the newcomer ends has to be free.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.policy.order import precedes
from lengthwise.policy.rollout import LOOKAHEAD, swap_gain
from lengthwise.policy.select import (
    Rows,
    blocks_for,
    growth,
    place_in_order,
    prompt_blocks,
    ranks_behind,
    uncached_tokens,
)
from lengthwise.request import PAUSED, RUNNING, WAITING, RequestTable

#: How much longer than the newcomer's work the victim's must be: predictions err, and who looks
#: shortest of many is mostly longer than that.
MARGIN: Final = 0.25

#: Steps that a swap may lose: where both ways are equal, somebody gets its first token sooner, and
#: a sum's last digit must not decide.
MOST_LOSS: Final = 1e-6

#: How many times the expected growth has to be free: predictions err, and what is held stays held.
GROWTH: Final = 3.0

_RUNS: Final = 0
_PAUSES: Final = 1
_FREED: Final = 2

# What is left for the step, in one array: free slots, places in the worker, blocks, tokens.
SLOTS: Final = 0
PLACES: Final = 1
BLOCKS: Final = 2
TOKENS: Final = 3


@compiled
def choose_active(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    waiting: Rows,
    swaps: bool,
) -> tuple[Rows, Rows, Rows, Rows]:
    """Who runs, who is paused and who is freed; states and times of pauses are written.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER, the running ones first. `may_make_way`: a running one may be
            paused, a paused one may be freed.
        table: array of REQUEST.
        groups: of `rank_requests`.
        ranks: of `rank_requests`.
        waiting: the waiting rows that may come in, in order.
        swaps: whether requests may swap places in this step.

    Returns:
        Places among the runners of those that are freed, of those that run and of those that are
        paused, and the waiting rows that come in.
    """
    fate = np.zeros(len(runners), np.int8)
    resting = _resting(table, groups, ranks, runners)
    for place in resting:
        fate[place] = _PAUSES
    left = _what_is_left(facts, runners)
    freed = np.empty(len(resting), np.int64)
    count = _free_worst(runners, resting, fate, left, 0, -1, freed, 0)

    taken = np.empty(len(resting), np.int64)
    back = 0
    front = np.empty(len(waiting), np.int64)
    come = 0
    asked = 0
    cursor = 0
    while left[SLOTS] > 0:
        while cursor < len(resting) and fate[resting[cursor]] != _PAUSES:
            cursor += 1
        if cursor == len(resting) and asked == len(waiting):
            break
        if asked < len(waiting) and (
            cursor == len(resting)
            or not precedes(table, groups, ranks, runners[resting[cursor]].row, waiting[asked])
        ):
            row = waiting[asked]
            asked += 1
            if not adapter_fits(facts, runners, table, fate, front[:come], row, -1):
                continue
            if not comes_in(facts, table[row], left, 0):
                asked = len(waiting)  # nobody behind it is let in before it
                continue
            front[come] = row
            come += 1
            left[SLOTS] -= 1
            continue
        place = resting[cursor]
        cursor += 1
        if not adapter_fits(facts, runners, table, fate, front[:come], runners[place].row, -1):
            continue
        needed = growth(facts, runners[place])
        count = _free_worst(runners, resting, fate, left, needed, place, freed, count)
        if needed > left[BLOCKS] and (facts.running > 0 or back > 0 or come > 0):
            break  # somebody runs, and gives blocks back
        fate[place] = _RUNS
        taken[back] = place
        back += 1
        left[SLOTS] -= 1
        left[BLOCKS] -= needed
        left[TOKENS] -= runners[place].wanted_tokens

    swapped = np.empty(len(runners), np.int64)
    gone = 0
    if swaps:
        gone, back, come, count = _swap(
            rules,
            facts,
            runners,
            table,
            groups,
            ranks,
            waiting[asked:],
            resting,
            fate,
            left,
            swapped,
            taken,
            back,
            front,
            come,
            freed,
            count,
        )
    running = np.empty(len(runners), np.int64)
    size = 0
    for place in range(len(runners)):
        if fate[place] == _RUNS and not runners[place].paused:
            running[size] = place
            size += 1
    for place in taken[:back]:
        running[size] = place
        size += 1
        table[runners[place].row].state = RUNNING
    paused = np.empty(len(runners), np.int64)
    length = 0
    for place in resting:
        if fate[place] == _PAUSES:
            paused[length] = place
            length += 1
    for place in swapped[:gone]:
        paused[length] = place
        length += 1
        request = table[runners[place].row]
        if request.state != PAUSED:  # else it would have gone on in this very step
            request.pauses += 1
            request.paused_s = facts.now_s
        request.state = PAUSED
    return freed[:count], running[:size], paused[:length], front[:come]


@compiled
def _resting(
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    runners: NDArray[np.void],
) -> Rows:
    """Places of the paused requests, in order."""
    order = np.empty(len(runners), np.int64)
    size = 0
    for place in range(len(runners)):
        if not runners[place].paused:
            continue
        # Insertion sort: they were put down in order, or nearly.
        hole = size
        size += 1
        while hole > 0 and precedes(
            table, groups, ranks, runners[place].row, runners[order[hole - 1]].row
        ):
            order[hole] = order[hole - 1]
            hole -= 1
        order[hole] = place
    return order[:size]


@compiled
def _what_is_left(facts: Any, runners: NDArray[np.void]) -> Rows:
    left = np.empty(4, np.int64)
    left[SLOTS], left[PLACES] = facts.free_slots, facts.free_places
    left[BLOCKS], left[TOKENS] = facts.free_blocks, facts.token_budget
    for runner in runners:
        if not runner.paused:
            left[BLOCKS] -= growth(facts, runner)
            left[TOKENS] -= runner.wanted_tokens
    return left


@compiled
def _free_worst(
    runners: NDArray[np.void],
    resting: Rows,
    fate: NDArray[np.int8],
    left: Rows,
    needed: int,
    spared: int,
    freed: Rows,
    count: int,
) -> int:
    """Free paused requests, the last in order first, until `needed` blocks are there."""
    for k in range(len(resting) - 1, -1, -1):
        if left[BLOCKS] >= needed:
            break
        place = resting[k]
        if place == spared or fate[place] != _PAUSES or not runners[place].may_make_way:
            continue
        fate[place] = _FREED
        left[BLOCKS] += runners[place].freed_blocks
        left[PLACES] += 1
        freed[count] = place
        count += 1
    return count


@compiled
def comes_in(facts: Any, request: Any, left: Rows, spare: int) -> bool:
    """Whether there is room for a waiting request; then it is taken."""
    needed = prompt_blocks(facts, request)
    if needed > left[BLOCKS] + spare - facts.watermark_blocks:
        return False
    if left[PLACES] <= 0 or left[TOKENS] <= 0:
        return False
    left[BLOCKS] -= needed
    left[TOKENS] -= uncached_tokens(request)
    left[PLACES] -= 1
    return True


@compiled
def adapter_fits(
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    fate: NDArray[np.int8],
    front: Rows,
    row: int,
    leaves: int,
) -> bool:
    """Whether the step can hold the LoRA adapter of one more request.

    Args:
        facts: see `choose_active`.
        runners: see `choose_active`.
        table: see `choose_active`.
        fate: of the runners.
        front: the waiting rows that come in.
        row: the request's.
        leaves: place of a runner that makes way for it, -1 for none.
    """
    adapter = table[row].adapter
    if facts.max_adapters == 0 or adapter == 0:
        return True
    held = np.empty(facts.max_adapters, np.int64)
    size = 0
    for k in range(len(runners) + len(front)):
        if k < len(runners):
            if fate[k] != _RUNS or k == leaves:
                continue
            other = table[runners[k].row].adapter
        else:
            other = table[front[k - len(runners)]].adapter
        if other == adapter:
            return True
        if other == 0 or size == len(held) or (held[:size] == other).any():
            continue
        held[size] = other
        size += 1
    return size < len(held)


@compiled
def _swap(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    waiting: Rows,
    resting: Rows,
    fate: NDArray[np.int8],
    left: Rows,
    swapped: Rows,
    taken: Rows,
    back: int,
    front: Rows,
    come: int,
    freed: Rows,
    count: int,
) -> tuple[int, int, int, int]:
    """Paused and waiting requests take the places of running ones.

    Args:
        rules: see `choose_active`, as are the next five.
        facts: see `choose_active`.
        runners: see `choose_active`.
        table: see `choose_active`.
        groups: see `choose_active`.
        ranks: see `choose_active`.
        waiting: the waiting rows that are left.
        resting: places of all that were paused, in order.
        fate: of the runners, written.
        left: for the step, written.
        swapped: written: places of those that are paused.
        taken: written: places of those that go on.
        back: how many of these there are before.
        front: written: waiting rows that come in.
        come: how many of these there are before.
        freed: written: places of those that are freed.
        count: how many of these there are before.

    Returns:
        How many there are of swapped, taken, front and freed.
    """
    gone = 0
    for place in resting:
        row = runners[place].row
        if groups[row] % TIERS != OVERDUE or fate[place] != _PAUSES:
            continue
        victim = _last_behind(facts, runners, table, groups, ranks, fate, front[:come], row)
        if victim < 0:
            continue
        left[BLOCKS] += growth(facts, runners[victim])
        needed = growth(facts, runners[place])
        count = _free_worst(runners, resting, fate, left, needed, place, freed, count)
        if needed > left[BLOCKS]:
            left[BLOCKS] -= growth(facts, runners[victim])
            continue
        left[BLOCKS] -= needed
        fate[victim], fate[place] = _PAUSES, _RUNS
        swapped[gone], taken[back] = victim, place
        gone += 1
        back += 1

    # Who would run next, in order, and the place of each; -1 for those that wait.
    most = LOOKAHEAD * (facts.running + facts.free_slots)
    queue, places = np.empty(most + 1, np.int64), np.empty(most + 1, np.int64)
    length, k, w = 0, 0, 0
    while length < most and (k < len(resting) or w < len(waiting)):
        if k < len(resting) and fate[resting[k]] != _PAUSES:
            k += 1
        elif k < len(resting) and (
            w == len(waiting) or precedes(table, groups, ranks, runners[resting[k]].row, waiting[w])
        ):
            queue[length], places[length] = runners[resting[k]].row, resting[k]
            length += 1
            k += 1
        else:
            queue[length], places[length] = waiting[w], -1
            length += 1
            w += 1
    held, remaining = np.empty(len(runners) + come, np.int64), np.empty(len(runners) + come)
    active = 0
    for place in range(len(runners)):
        if fate[place] == _RUNS:
            held[active] = place
            remaining[active] = table[runners[place].row].remaining
            active += 1
    for row in front[:come]:
        held[active] = -1
        remaining[active] = _work(facts, table[row])
        active += 1
    opened, swaps, victim, spare = True, 0, -1, 0
    while length > 0 and swaps < rules.max_swaps:
        row, place = queue[0], places[0]
        waits = place < 0
        if not waits and not runners[place].paused:
            break  # it has only just made way
        k = -1
        if not waits or opened:
            k = _pays(
                rules,
                facts,
                runners,
                table,
                groups,
                ranks,
                queue[:length],
                fate,
                front[:come],
                held[:active],
                remaining[:active],
            )
            if k < 0:
                break
        fits = k >= 0
        if fits:
            victim = held[k]
            spare = growth(facts, runners[victim])
            if waits:
                needed = growth_meanwhile(facts, remaining[:active], k, table[row].remaining)
                fits = comes_in(facts, table[row], left, spare - needed)
                opened = fits
            else:
                fits = growth(facts, runners[place]) <= left[BLOCKS] + spare
        for j in range(1, length):
            queue[j - 1], places[j - 1] = queue[j], places[j]
        length -= 1
        if not fits:
            continue
        left[BLOCKS] += spare
        left[TOKENS] += runners[victim].wanted_tokens
        fate[victim] = _PAUSES
        swapped[gone] = victim
        gone += 1
        swaps += 1
        if waits:
            front[come] = row
            come += 1
            held[k], remaining[k] = -1, _work(facts, table[row])
        else:
            left[BLOCKS] -= growth(facts, runners[place])
            fate[place] = _RUNS
            taken[back] = place
            back += 1
            held[k], remaining[k] = -1, table[row].remaining
        # The victim takes its place among those that run next. As the next, it would only return.
        returns = place_in_order(groups, ranks, queue[:length], runners[victim].row)
        if returns == 0:
            break
        for j in range(length, returns, -1):
            queue[j], places[j] = queue[j - 1], places[j - 1]
        queue[returns], places[returns] = runners[victim].row, victim
        length += 1
    return gone, back, come, count


@compiled
def growth_meanwhile(facts: Any, remaining: NDArray[np.float64], leaves: int, steps: float) -> int:
    """Blocks that a newcomer and those that run beside it are expected to take until it ends.

    A pause keeps its blocks from all others. Where these would run out meanwhile, somebody is
    computed again after all.
    """
    tokens = steps
    for k in range(len(remaining)):
        if k != leaves:
            tokens += min(remaining[k], steps)
    return blocks_for(GROWTH * tokens, facts.block_size)


@compiled
def _work(facts: Any, request: Any) -> float:
    """What a waiting request takes of a slot, in output tokens: its prompt and its answer."""
    return float(request.remaining + facts.token_work * uncached_tokens(request))


@compiled
def _last_behind(
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    fate: NDArray[np.int8],
    front: Rows,
    row: int,
) -> int:
    """The last in order of those that may be paused for a row, -1 for none."""
    lends = np.empty(len(runners), np.bool_)
    for place in range(len(runners)):
        lends[place] = ranks_behind(groups, ranks, runners[place].row, row)
    return last_to_lend(facts, runners, table, groups, ranks, fate, front, row, lends)


@compiled
def last_to_lend(
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    fate: NDArray[np.int8],
    front: Rows,
    row: int,
    lends: NDArray[np.bool_],
) -> int:
    """The last in order of those that run, may make way and `lends` names, -1 for none.

    Without it, the adapters of the others, of those in `front` and of `row` have to fit.
    """
    chosen = -1
    for place in range(len(runners)):
        runner = runners[place]
        if fate[place] != _RUNS or runner.paused or not runner.may_make_way or not lends[place]:
            continue
        if chosen >= 0 and precedes(table, groups, ranks, runner.row, runners[chosen].row):
            continue
        if adapter_fits(facts, runners, table, fate, front, row, place):
            chosen = place
    return chosen


@compiled
def _pays(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    queue: Rows,
    fate: NDArray[np.int8],
    front: Rows,
    held: Rows,
    remaining: NDArray[np.float64],
) -> int:
    """Where among those that run the one is whose place queue[0] should take; -1 for none."""
    newcomer = queue[0]
    jobs = np.empty(len(queue))
    for k in range(len(queue)):
        request = table[queue[k]]
        jobs[k] = request.remaining if request.state != WAITING else _work(facts, request)
    chosen, best = -1, -math.inf
    for k in range(len(held)):
        place = held[k]
        if place < 0 or runners[place].paused or not runners[place].may_make_way:
            continue
        if not ranks_behind(groups, ranks, runners[place].row, newcomer):
            continue
        if not adapter_fits(facts, runners, table, fate, front, newcomer, place):
            continue
        if remaining[k] > best:
            chosen, best = k, remaining[k]
    if chosen < 0 or rules.greedy:
        return chosen
    if best < (1.0 + MARGIN) * jobs[0]:
        return -1
    victim = runners[held[chosen]].row
    gain = swap_gain(
        remaining,
        jobs,
        chosen,
        place_in_order(groups, ranks, queue[1:], victim),
        0.0,
        0.0,
        0,
        1.0,
        0.0,
        0.0,
        0.0,
        facts.block_size,
        False,
    )
    return chosen if gain > -MOST_LOSS else -1
