"""What the pre-pass of a step is told, and whether it has anything to decide.

These are the engine's limits and state, and its running requests. The vLLM adapter and the
simulator gather the same facts. In most steps a few of them say that there is nothing to decide;
where there may be, all else is in `prepass`.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.prices import batch_s, prefill_weight
from lengthwise.policy.select import blocks_for

SWAP_EVERY: Final = 8  #: steps between looks for swaps: few tokens, and most steps cost nothing

#: One engine before a step.
FACTS: Final = np.dtype(
    [
        # Its limits.
        ("token_budget", np.int64),  # tokens that a step may compute
        ("block_size", np.int64),  # tokens a KV block
        ("watermark_blocks", np.int64),  # that admission leaves free
        ("lookahead_tokens", np.int64),  # for which KV is allocated beyond those of the step
        ("caching", np.bool_),  # freed blocks stay reusable
        ("max_adapters", np.int64),  # LoRA adapters that a step may hold; 0 for no limit
        ("host_blocks", np.int64),  # KV blocks that host memory holds; 0: nothing is offloaded
        ("offloads_answers", np.bool_),  # and not only prompts
        # Its state.
        ("now_s", np.float64),
        ("step", np.int64),  # its number
        ("rows", np.int64),  # of the table, in use
        ("running", np.int64),  # requests
        ("paused", np.int64),  # requests
        ("waiting", np.int64),  # requests
        ("free_slots", np.int64),
        ("free_places", np.int64),  # in the worker, which paused requests take as well
        ("free_blocks", np.int64),
        ("may_swap", np.bool_),  # it can preempt and admit in this step
        ("arrivals", np.int64),  # of requests so far
        ("looked_at", np.int64),  # of them, when swaps were last looked for
        ("admissions", np.int64),  # made so far
        ("promised", np.int64),  # admissions that there should be after the step before
        ("looking", np.int64),  # of those that run, how many are only looked at
        ("leaving", np.int64),  # paused in the step before to be preempted; see `policy.offloading`
        ("decoded", np.int64),  # tokens computed so far, of answers
        ("prefilled", np.int64),  # and of prompts
        # What it has seen of preemptions; see `policy.prices`.
        ("lost_share", np.float64),  # of preempted tokens, computed again
        ("thrown_out", np.float64),  # of requests that left the batch, for want of memory
        # Its prices, as measured.
        ("step_s", np.float64),  # of a step in which all running requests decode
        ("prefill_s", np.float64),  # that a prefilled token adds to a step
        ("tokens_per_step", np.float64),  # whose KV is written, on average
        ("token_work", np.float64),  # output tokens that cost as much as a prefilled one
        ("prefill_weight", np.float64),  # the same; 0 where ranks count output tokens alone
        ("load_s", np.float64),  # for which a token's KV is loaded from host memory
    ],
    align=True,
)

#: One running or paused request.
RUNNER: Final = np.dtype(
    [
        ("row", np.int64),  # in the table
        ("age", np.int64),  # output tokens, as far as the scheduler knows
        ("computed_tokens", np.int64),
        ("wanted_tokens", np.int64),  # to be computed in this step, speculative ones among them
        ("paused", np.bool_),  # it was left out of the step before
        ("prefilling", np.bool_),  # in the middle of its prefill
        ("may_make_way", np.bool_),  # it can be preempted, or left out, for another
        ("freed_blocks", np.int64),  # by preempting it: those that no other request shares
        ("in_flight", np.bool_),  # and that can be had once the step before this has ended
    ],
    align=True,
)


def new_facts(
    count: int, *, token_budget: int, block_size: int, caching: bool = True, **more: float
) -> NDArray[np.void]:
    """Facts of engines at which nothing has happened yet, shape [count].

    Args:
        count: how many engines.
        token_budget: of each, as are the others: see FACTS.
        block_size: likewise.
        caching: likewise.
        more: other limits, by their names in FACTS; those that are not given are 0.
    """
    facts = np.zeros(count, FACTS)
    limits = {"token_budget": token_budget, "block_size": block_size, "caching": caching, **more}
    for name, value in limits.items():
        facts[name] = value
    return facts


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
    return adapts(rules, facts) or memory_may_run_out(facts) or needs_order(rules, facts)


@compiled
def prepare_one(
    rules: NDArray[np.void], facts: NDArray[np.void], times: NDArray[np.void], state: EngineState
) -> bool:
    """`prepare` for code that is not compiled: numba looks at an array of one record in less time
    than at a record, of which it takes microseconds."""
    return prepare(rules[0], facts[0], times[0], state)


def may_decide(
    rules: Any,
    step: int,
    newcomers: bool,
    looking: bool,
    free_for_paused: bool,
    free_blocks: int,
    most_blocks: int,
) -> bool:
    """Whether `prepare` may find anything, from so little that in most steps no more is gathered.

    Args:
        rules: a RULES record, or the discipline that it is made of.
        step: its number.
        newcomers: requests have come since swaps were last looked for.
        looking: requests are being looked at, see `policy.peek`.
        free_for_paused: there are paused requests, and free slots.
        free_blocks: now.
        most_blocks: that a step may take, see `memory_may_run_out`.
    """
    return (
        step % SWAP_EVERY == 0
        or (newcomers and rules.pauses)
        or rules.memory_growth > 0.0
        or (looking and rules.peeks)
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
    due = due or (rules.peeks and facts.looking > 0) or (rules.pauses and facts.leaving > 0)
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
