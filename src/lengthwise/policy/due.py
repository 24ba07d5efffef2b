"""Whether a step has anything to decide, from a few numbers: in most steps it has not."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from lengthwise.compiled import compiled
from lengthwise.policy.select import blocks_for
from lengthwise.policy.step_time import batch_s, prefill_weight

SWAP_EVERY: Final = 8  #: steps between looks for swaps: few tokens, and most steps cost nothing


class EngineState(NamedTuple):
    """What an engine says of itself before a step; the meaning of each is given at FACTS."""

    now_s: float
    step: int
    rows: int
    running: int
    paused: int
    waiting: int
    free_slots: int  # below 0: more run than there are slots
    free_places: int
    free_blocks: int
    may_swap: bool
    arrivals: int
    admissions: int


@compiled
def may_decide(
    step: int,
    newcomers: bool,
    looks_ahead: bool,
    looks_end: bool,
    free_for_paused: bool,
    free_blocks: int,
    most_blocks: int,
) -> bool:
    """Whether a step may have anything to decide, from the least that says so.

    In most steps it has not. Whoever knows these numbers need not gather the facts then; the same
    without compiled code, which costs more to call than this: `may_decide.py_func`.

    Args:
        step: its number.
        newcomers: requests have come since swaps were last looked for, and nobody need wait for
            the next look: see RULES.pauses.
        looks_ahead: see RULES.memory_growth.
        looks_end: requests are being looked at, see `policy.peek`.
        free_for_paused: there are paused requests, and free slots.
        free_blocks: now.
        most_blocks: that all running requests may want in a step, together.
    """
    return (
        step % SWAP_EVERY == 0
        or newcomers
        or looks_ahead
        or looks_end
        or free_for_paused
        or free_blocks < most_blocks
    )


@compiled
def swaps_are_due(rules: Any, facts: Any) -> bool:
    """Whether running requests may make way for others in this step."""
    others = (facts.waiting > 0 and facts.may_swap) or (rules.pauses and facts.paused > 0)
    due = facts.step % SWAP_EVERY == 0
    # A pause costs nothing, so that a newcomer need not wait for the next look.
    due = due or (rules.pauses and facts.arrivals > facts.looked_at)
    due = due or (rules.peeks and facts.looking > 0)
    return bool(rules.preempts and others and due and facts.running > 0)


@compiled
def takes_up(rules: Any, facts: Any) -> bool:
    """Whether there are paused requests and slots for them."""
    return bool(rules.pauses and facts.paused > 0 and facts.free_slots > 0)


@compiled
def looks_ahead(rules: Any, facts: Any) -> bool:
    """Whether admission in this step depends on how memory is predicted to grow."""
    return bool(rules.memory_growth > 0.0 and facts.free_slots > 0 and facts.waiting > 0)


@compiled
def prepare(rules: Any, facts: Any, times: Any, state: EngineState) -> bool:
    """Write the facts of the step that comes next.

    Args:
        rules: a RULES record.
        facts: a FACTS record, written.
        times: a STEP_TIME record.
        state: the engine's.

    Returns:
        Whether there may be anything to decide: if not, the running requests need not be looked at.
    """
    facts.now_s, facts.step, facts.rows = state.now_s, state.step, state.rows
    facts.running, facts.paused, facts.waiting = state.running, state.paused, state.waiting
    facts.free_slots, facts.free_places = max(state.free_slots, 0), max(state.free_places, 0)
    facts.free_blocks, facts.may_swap = state.free_blocks, state.may_swap
    facts.arrivals, facts.admissions = state.arrivals, state.admissions
    facts.step_s, facts.prefill_s = batch_s(times, state.running), times.prefill_s
    facts.tokens_per_step = times.mean_tokens
    facts.token_work = prefill_weight(times, max(state.running, 1))
    facts.prefill_weight = facts.token_work if rules.service_time else 0.0
    if not may_decide(
        state.step,
        rules.pauses and state.arrivals > facts.looked_at,
        rules.memory_growth > 0.0,
        rules.peeks and facts.looking > 0,
        state.paused > 0 and state.free_slots > 0,
        state.free_blocks,
        _most_blocks(facts),
    ):
        return False
    return adapts(rules, facts) or memory_may_run_out(facts) or needs_order(rules, facts)


@compiled
def needs_order(rules: Any, facts: Any) -> bool:
    """Whether something is to be decided for which everyone is ranked."""
    due = swaps_are_due(rules, facts) or takes_up(rules, facts)
    return bool(due or looks_ahead(rules, facts))


@compiled
def adapts(rules: Any, facts: Any) -> bool:
    """Whether a parameter that is "auto" is set anew in this step."""
    return bool(rules.adapts >= 0 and facts.running > 0 and facts.step % SWAP_EVERY == 0)


@compiled
def memory_may_run_out(facts: Any) -> bool:
    """Whether what runs may want more blocks than are free: a first look, at no request."""
    return bool(facts.free_blocks < _most_blocks(facts))


@compiled
def _most_blocks(facts: Any) -> int:
    """Blocks that a step may take: one for each request that runs, and those of its tokens."""
    return int(facts.running + blocks_for(facts.token_budget, facts.block_size))
