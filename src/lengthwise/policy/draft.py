"""Who runs in a step, as it is being decided where those that make way are paused.

Whoever is given a slot takes it from what is left of the step, and is written down at once: so that
each later question is asked of the step as it is by then.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.order import Order, precedes
from lengthwise.policy.select import Rows, blocks_for, growth, prompt_blocks, uncached_tokens

#: How many times the expected growth has to be free: predictions err, and what is held stays held.
GROWTH: Final = 3.0

# What becomes of a runner.
RUNS: Final = 0
PAUSES: Final = 1
FREED: Final = 2

#: What a step has left, and how many places of each list of a draft are written.
LEFT: Final = np.dtype(
    [
        ("slots", np.int64),
        ("places", np.int64),  # in the worker
        ("blocks", np.int64),
        ("tokens", np.int64),
        ("freed", np.int64),
        ("resumed", np.int64),
        ("paused", np.int64),
        ("admitted", np.int64),
    ],
    align=True,
)


class Draft(NamedTuple):
    """A step that is not decided yet. Of each list only the beginning is written; see LEFT.

    Attributes:
        left: array of one LEFT record.
        fate: RUNS, PAUSES or FREED for each runner.
        freed: places of the paused runners that give their memory back.
        resumed: places of the paused runners that go on.
        paused: places of the runners that are paused now.
        admitted: the waiting rows that come in.
    """

    left: NDArray[np.void]
    fate: NDArray[np.int8]
    freed: Rows
    resumed: Rows
    paused: Rows
    admitted: Rows


@compiled
def new_draft(facts: Any, count: int, waiting: int) -> Draft:
    """A step in which nobody runs yet, with all that the engine has left to it.

    Args:
        facts: a FACTS record.
        count: how many runners there are.
        waiting: how many rows may come in at most.
    """
    draft = Draft(
        np.zeros(1, LEFT),
        np.full(count, PAUSES, np.int8),
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty(count, np.int64),
        np.empty(waiting, np.int64),
    )
    left = draft.left[0]
    left.slots, left.places = facts.free_slots, facts.free_places
    left.blocks, left.tokens = facts.free_blocks, facts.token_budget
    return draft


@compiled
def keep(facts: Any, runners: NDArray[np.void], draft: Draft, place: int) -> None:
    """A runner that has its slot goes on."""
    left = draft.left[0]
    draft.fate[place] = RUNS
    left.blocks -= growth(facts, runners[place])
    left.tokens -= runners[place].wanted_tokens


@compiled
def resume(draft: Draft, place: int) -> None:
    """A paused runner goes on; what it takes of the step is the caller's to count."""
    left = draft.left[0]
    draft.fate[place] = RUNS
    draft.resumed[left.resumed] = place
    left.resumed += 1


@compiled
def pause(draft: Draft, place: int) -> None:
    """A runner makes way; what it leaves of the step is the caller's to count."""
    left = draft.left[0]
    draft.fate[place] = PAUSES
    draft.paused[left.paused] = place
    left.paused += 1


@compiled
def admit(facts: Any, order: Order, draft: Draft, row: int) -> None:
    """A waiting row comes in."""
    left = draft.left[0]
    left.blocks -= prompt_blocks(facts, order.table[row])
    left.tokens -= uncached_tokens(order.table[row])
    left.places -= 1
    draft.admitted[left.admitted] = row
    left.admitted += 1


@compiled
def comes_in(facts: Any, order: Order, draft: Draft, row: int, spare: int) -> bool:
    """Let a waiting row in if there is room for it, `spare` blocks added to those that are left."""
    left = draft.left[0]
    needed = prompt_blocks(facts, order.table[row])
    if needed > left.blocks + spare - facts.watermark_blocks:
        return False
    if left.places <= 0 or left.tokens <= 0:
        return False
    admit(facts, order, draft, row)
    return True


@compiled
def free_worst(
    runners: NDArray[np.void], resting: Rows, draft: Draft, needed: int, spared: int
) -> None:
    """Free paused runners until `needed` blocks are there.

    Args:
        runners: array of RUNNER; `may_make_way`: which of the paused ones may be freed.
        resting: places of all that were paused, in order: the last is freed first.
        draft: written.
        needed: blocks.
        spared: place of a runner that is not freed, -1 for none.
    """
    left = draft.left[0]
    for k in range(len(resting) - 1, -1, -1):
        if left.blocks >= needed:
            break
        place = resting[k]
        if place == spared or draft.fate[place] != PAUSES or not runners[place].may_make_way:
            continue
        draft.fate[place] = FREED
        left.blocks += runners[place].freed_blocks
        left.places += 1
        draft.freed[left.freed] = place
        left.freed += 1


@compiled
def adapter_fits(
    facts: Any, runners: NDArray[np.void], order: Order, draft: Draft, row: int, leaves: int
) -> bool:
    """Whether the step can hold the LoRA adapter of one more request.

    Args:
        facts: a FACTS record.
        runners: array of RUNNER.
        order: of all requests.
        draft: who runs and comes in so far.
        row: the request's.
        leaves: place of a runner that makes way for it, -1 for none.
    """
    table = order.table
    adapter = table[row].adapter
    if facts.max_adapters == 0 or adapter == 0:
        return True
    admitted = draft.left[0].admitted
    held = np.empty(facts.max_adapters, np.int64)
    size = 0
    for k in range(len(runners) + admitted):
        if k < len(runners):
            if draft.fate[k] != RUNS or k == leaves:
                continue
            other = table[runners[k].row].adapter
        else:
            other = table[draft.admitted[k - len(runners)]].adapter
        if other == adapter:
            return True
        if other == 0 or size == len(held) or (held[:size] == other).any():
            continue
        held[size] = other
        size += 1
    return size < len(held)


@compiled
def last_to_lend(
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    draft: Draft,
    row: int,
    lends: NDArray[np.bool_],
) -> int:
    """The last in order of those that run, may make way and `lends` names, -1 for none.

    Without it, the adapters of the others, of those that come in and of `row` have to fit.
    """
    chosen = -1
    for place in range(len(runners)):
        runner = runners[place]
        if draft.fate[place] != RUNS or runner.paused:
            continue
        if not runner.may_make_way or not lends[place]:
            continue
        if chosen >= 0 and precedes(order, runner.row, runners[chosen].row):
            continue
        if adapter_fits(facts, runners, order, draft, row, place):
            chosen = place
    return chosen


@compiled
def growth_meanwhile(facts: Any, remaining: NDArray[np.float64], leaves: int, steps: float) -> int:
    """Blocks that a newcomer and those that run beside it are expected to take until it ends.

    A pause keeps its blocks from all others. Where these would run out meanwhile, somebody is
    computed again after all. Where host memory has a copy it is loaded, which keeps nobody else
    waiting: nothing is set aside then, as long as what is copied meanwhile leaves the copy there.

    Args:
        facts: a FACTS record.
        remaining: predicted steps of those that run.
        leaves: which of them makes way, -1 for none.
        steps: predicted steps of the newcomer.
    """
    tokens = steps
    for k in range(len(remaining)):
        if k != leaves:
            tokens += min(remaining[k], steps)
    blocks = blocks_for(GROWTH * tokens, facts.block_size)
    return 0 if facts.offloads_answers and blocks <= facts.host_blocks else blocks
