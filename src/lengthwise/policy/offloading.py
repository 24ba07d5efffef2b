"""Newcomers take the memory of running requests that host memory holds copies of.

A pause keeps its blocks, so that where memory is short hardly any is made. Where vLLM's connector
copies blocks to host memory as they are computed, there is a tier between that and computing again:
the victim is preempted for real, and loads its whole blocks when its turn comes (LTR's swap; Fu et
al., section 4.3). Who makes way for whom is decided by the same rule as without pauses, at the
measured price of that load (`policy.select`).

A connector lets go of no blocks of a request that is in flight, as all are that ran in the step
before where scheduling is asynchronous. Such a victim is paused first and preempted in the next
step, unless the answer to the same question is another by then.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.draft import (
    FREED,
    PAUSES,
    RUNS,
    Draft,
    adapter_fits,
    admit,
    pause,
)
from lengthwise.policy.facts import SWAP_EVERY
from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.policy.order import Order
from lengthwise.policy.select import Room, Rows, choose_swaps, growth, prompt_blocks
from lengthwise.request import RUNNING


@compiled
def may_load(rules: Any, facts: Any) -> bool:
    """Whether it is the time for it: every eighth step, and where somebody was paused for it.

    Who asks no price (`greedy`) preempts nobody whose answer would have to be computed again.
    """
    offloads = facts.host_blocks > 0 and (facts.offloads_answers or not rules.greedy)
    return bool(offloads and (facts.leaving > 0 or facts.step % SWAP_EVERY == 0))


@compiled
def loads_are_due(rules: Any, facts: Any, order: Order, waiting: Rows) -> bool:
    """Whether a newcomer may take the memory of a running request in this step.

    What each would give back is asked of the engine then, which is dear: only where those that
    would come in find too little free.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        order: of all requests.
        waiting: rows in order.
    """
    if not may_load(rules, facts):
        return False
    free = facts.free_blocks - facts.watermark_blocks - facts.running
    needed = 0
    for row in waiting[: facts.free_slots + rules.max_swaps]:
        needed += prompt_blocks(facts, order.table[row])
    return bool(needed > free)


@compiled
def preempt_by_load(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    resting: Rows,
    draft: Draft,
    goes_on: bool,
) -> int:
    """Let waiting requests in that no pause has made room for, if that pays for a load.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER; nobody makes way whose `freed_blocks` have not been asked for.
        order: of all requests.
        waiting: the waiting rows that may come in, in order.
        resting: places of all that were paused, in order.
        draft: written.
        goes_on: victims were paused for this in the step before. Nobody else is: of equal ones, who
            has just been in flight would be paused in turn.

    Returns:
        How many are paused in order to be preempted in the next step.
    """
    left = draft.left[0]
    places = _holders(runners, resting, draft)
    holders = runners[places]
    for holder in holders:
        preempted = order.table[holder.row].preemptions
        allowed = holder.freed_blocks > 0 and preempted < rules.max_preemptions
        # A stall that has come to its end does not begin anew.
        ends_stall = holder.paused and order.groups[holder.row] % TIERS == OVERDUE
        allowed = allowed and not ends_stall and not (goes_on and holder.in_flight)
        holder.may_make_way = holder.may_make_way and allowed
    # Of no more than these is it known whether they could be admitted.
    most = facts.free_slots + rules.max_swaps
    newcomers = _those_left(facts, runners, order, waiting[:most], draft)
    slots, blocks = min(left.slots, left.places), left.blocks - facts.watermark_blocks
    room = Room(slots, blocks, left.tokens, rules.max_swaps - left.paused)
    victims, admitted = choose_swaps(rules, facts, holders, order, newcomers, room)
    at_once = admitted - len(victims)
    for row in newcomers[:at_once]:
        admit(facts, order, draft, row)
        left.slots -= 1
    leaving = 0
    for k in range(len(victims)):
        place = places[victims[k]]
        runner = runners[place]
        if runner.in_flight:
            left.blocks += growth(facts, runner)
            left.slots += 1
            pause(draft, place)
            leaving += 1
        elif leaving == 0:  # else the newcomer before this one has not come in yet
            _free(facts, runners, order, draft, place)
            admit(facts, order, draft, newcomers[at_once + k])
            left.slots -= 1
    return leaving


@compiled
def _holders(runners: NDArray[np.void], resting: Rows, draft: Draft) -> Rows:
    """Places of those that run, and of paused ones that slots are free for, which memory is not."""
    places = np.empty(len(runners), np.int64)
    size = 0
    for place in range(len(runners)):
        if draft.fate[place] == RUNS:
            places[size] = place
            size += 1
    spare = draft.left[0].slots
    for place in resting:
        if spare > 0 and draft.fate[place] == PAUSES:
            places[size] = place
            size += 1
            spare -= 1
    return places[:size]


@compiled
def _those_left(
    facts: Any, runners: NDArray[np.void], order: Order, waiting: Rows, draft: Draft
) -> Rows:
    """The waiting rows that do not come in yet, in order, up to one that brings a further adapter:
    whether that fits hangs on who makes way. Those whose adapter does not fit are passed over."""
    rows = np.empty(len(waiting), np.int64)
    size = 0
    for row in waiting:
        if (draft.admitted[: draft.left[0].admitted] == row).any():
            continue
        if not adapter_fits(facts, runners, order, draft, row, -1):
            continue
        if not _adapter_is_held(facts, runners, order, draft, row):
            break
        rows[size] = row
        size += 1
    return rows[:size]


@compiled
def _adapter_is_held(
    facts: Any, runners: NDArray[np.void], order: Order, draft: Draft, row: int
) -> bool:
    """Whether a row may come in whoever makes way for it, and for others in the same step."""
    adapter = order.table[row].adapter
    if facts.max_adapters == 0 or adapter == 0:
        return True
    for place in range(len(runners)):
        if draft.fate[place] == RUNS and order.table[runners[place].row].adapter == adapter:
            return True
    return False


@compiled
def _free(facts: Any, runners: NDArray[np.void], order: Order, draft: Draft, place: int) -> None:
    """A runner is preempted, and its slot, its place and its blocks are free."""
    left, runner = draft.left[0], runners[place]
    left.blocks += runner.freed_blocks
    left.places += 1
    if draft.fate[place] == RUNS:
        left.blocks += growth(facts, runner)
        left.slots += 1
    draft.fate[place] = FREED
    draft.freed[left.freed] = place
    left.freed += 1
    order.table[runner.row].state = RUNNING
