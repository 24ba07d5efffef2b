"""Who computes how many tokens in a step, as vLLM V1's scheduler says (v1/core/sched/scheduler.py).

Running requests in order, each as many tokens as the budget leaves it; then waiting ones while
there are slots, budget and blocks for the whole of their known tokens.
"""

from __future__ import annotations

from typing import Any

from lengthwise.compiled import compiled_here
from lengthwise.policy.prepass import SPARE
from lengthwise.policy.select import blocks_for
from lengthwise.simulate.kv_runs import take_from_runs
from lengthwise.simulate.plan import first_rows, rank_once
from lengthwise.simulate.prefix_cache import find_cached
from lengthwise.simulate.replica import Integers, Replica
from lengthwise.simulate.slots import compute, note_memory_preemption, preempt, start


@compiled_here
def serve_running(replica: Replica) -> tuple[int, int]:
    """Give running requests their tokens, preempting from the tail where blocks run out.

    Returns:
        The tokens left in the step, and how many requests were preempted.
    """
    limits, engine, memory = replica.limits, replica.engine, replica.memory
    slots, running = replica.batch.slots, replica.batch.running
    size = limits.block_size
    budget = limits.token_budget
    several = _are_several(engine)
    preempted = 0
    k = 0
    while k < engine.running and budget > 0:
        s = running[k]
        slot = slots[s]
        k += 1
        tokens = slot.known - slot.computed
        named = slot.known - slot.in_flight
        if tokens == 1 and (not limits.shares or named // size == slot.named // size):
            # Most steps of most requests: one token, in a block that is there or easily had.
            grows = slot.computed == slot.blocks * size
            if not grows or (not limits.shares and engine.free_blocks > 0):
                if grows:
                    slot.blocks += 1
                    engine.free_blocks -= 1
                    if limits.caching:
                        take_from_runs(engine, memory.runs, 1)
                slot.computed += 1
                slot.named = named
                slot.scheduled = 1
                budget -= 1
                continue
        if several and 0 < limits.long_prefill_tokens < tokens:
            tokens = limits.long_prefill_tokens
        tokens = min(tokens, budget)
        need = blocks_for(slot.computed + tokens, size)
        while need - slot.blocks > engine.free_blocks:
            last = engine.running - 1
            note_memory_preemption(replica, slots[running[last]].request)
            own = running[last] == s
            preempt(replica, last)
            preempted += 1
            if own:
                return budget, preempted
        compute(replica, s, tokens)
        budget -= tokens
    return budget, preempted


@compiled_here
def admit_waiting(replica: Replica, budget: int, front: Integers, has_front: bool) -> None:
    """Let waiting requests in, in order, until one does not fit.

    Args:
        replica: the engine.
        budget: tokens left in the step.
        front: the only rows that may come in, where they are already chosen.
        has_front: whether they are.
    """
    limits, rules, engine = replica.limits, replica.rules, replica.engine
    requests, queue = replica.requests, replica.queue
    order, cursor = front, 0
    while budget > 0 and engine.running < limits.slots and engine.waiting > 0:
        if not rules.reorders:
            i = engine.first
        else:
            if cursor == len(order):
                if has_front:
                    return
                rank_once(replica, False)
                want = limits.slots - engine.running + SPARE
                order = first_rows(replica, want)
                if len(order) == 0:
                    return
                cursor = 0
            i = queue.request[order[cursor]]
            cursor += 1
        hits, free_hits = 0, 0
        if limits.caching:
            hits, free_hits = find_cached(replica, i)
        known = requests[i].prompt_tokens + requests[i].age
        watermark = limits.watermark_blocks if engine.running > 0 else 0
        need = blocks_for(known, limits.block_size) - hits + free_hits + watermark
        if need > engine.free_blocks:
            return
        tokens = known - hits * limits.block_size
        if _are_several(engine) and 0 < limits.long_prefill_tokens < tokens:
            tokens = limits.long_prefill_tokens
        tokens = min(tokens, budget)
        start(replica, i, hits, tokens)
        budget -= tokens


@compiled_here
def _are_several(engine: Any) -> bool:
    """Whether a long prefill has to leave room for others. One that was preempted while its last
    token was on its way is among them: the scheduler does not know yet that it has ended."""
    return bool(engine.running + engine.paused + engine.waiting + engine.ended_waiting > 1)
