"""One step of one engine: what comes before it, who computes how much, and what happens in it.

Who computes how many tokens is as vLLM V1's scheduler says (v1/core/sched/scheduler.py): running
requests in order, each as many tokens as the budget leaves it; then waiting ones while there are
slots, budget and blocks for the whole of their known tokens.

Before that comes the pre-pass of the vLLM adapter (`simulate/plan.py`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lengthwise.compiled import compiled_here
from lengthwise.policy.prepass import SPARE
from lengthwise.policy.prices import observe
from lengthwise.policy.select import blocks_for
from lengthwise.simulate.engine import step_seconds
from lengthwise.simulate.kv_blocks import take_from_runs
from lengthwise.simulate.plan import first_rows, plan_step, rank_once
from lengthwise.simulate.replica import Integers, Replica
from lengthwise.simulate.slots import (
    compute,
    find_cached,
    foretell,
    name_full_blocks,
    note_memory_preemption,
    preempt,
    read_prompt,
    retire,
    start,
)


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


_NO_REQUESTS = np.empty(0, np.int64)


@compiled_here
def run_step(replica: Replica, step: Any) -> bool:
    """Plan a step of an engine and let it happen.

    Args:
        replica: the engine, written.
        step: a STEP record, written: what was done.

    Returns:
        Whether anything ran.
    """
    limits, rules, engine = replica.limits, replica.rules, replica.engine
    engine.step += 1
    if rules.measures_steps:
        _measure(limits, replica.times, engine)
    engine.planned_s = engine.plans_s
    if rules.predicts:
        foretell(replica)
    front, has_front, preempted = _NO_REQUESTS, False, 0
    if rules.reorders:
        front, has_front, preempted = plan_step(replica)
    budget, for_memory = serve_running(replica)
    old = engine.running
    if for_memory == 0 and budget > 0 and engine.waiting > 0 and old < limits.slots:
        admit_waiting(replica, budget, front, has_front)
    sequences, seconds = _work(replica, old, step)
    step.preempted = preempted + for_memory
    if limits.lag > 0:
        # What that last token completes can be found later, also of those that end with it.
        _settle_paused(replica)
        retire(replica)
    if rules.counts_steps:
        _count_steps(replica)
    starts_s = engine.starts_s
    end = starts_s + seconds
    ended = _emit(replica, end)
    if limits.lag == 0 and ended:
        retire(replica)
    # With a lag the next step is planned while this one runs.
    engine.plans_s = starts_s if limits.lag > 0 and sequences > 0 else end
    engine.starts_s = end
    # With a lag one more step is planned, an empty one, once the last end is known.
    if engine.running + engine.waiting + engine.paused == 0 and (limits.lag == 0 or sequences == 0):
        engine.plans_s = math.inf
    return sequences > 0


@compiled_here
def _measure(limits: Any, times: Any, engine: Any) -> None:
    """Take up what the last step took: as the server does, which sees only when it plans."""
    # Without a running request the engine may have idled since.
    if engine.running + engine.paused == 0 or engine.decode < 0:
        return
    seconds = engine.plans_s - engine.planned_s
    if limits.lag == 0:
        observe(times, engine.prefill, engine.decode, seconds)
    elif engine.decode_before >= 0:
        # What ran since the last plan is the step before it.
        observe(times, engine.prefill_before, engine.decode_before, seconds)


@compiled_here
def _work(replica: Replica, old: int, step: Any) -> tuple[int, float]:
    """What the planned step does, written to `step`.

    Args:
        replica: the engine.
        old: how many of its running requests ran before this step.
        step: a STEP record, written.

    Returns:
        How many requests run in it, and its seconds.
    """
    engine, slots, running = replica.engine, replica.batch.slots, replica.batch.running
    prefill, decode, kv, sequences, attention = 0, 0, 0, 0, 0.0
    for k in range(engine.running):
        slot = slots[running[k]]
        tokens = slot.scheduled
        if tokens == 0:
            continue
        sequences += 1
        kv += slot.computed
        if tokens > 1 or k >= old:
            prefill += tokens
            attention += tokens * (slot.computed - 0.5 * (tokens - 1))
        else:
            decode += 1
    seconds = 0.0
    if sequences > 0:
        seconds = step_seconds(replica.terms, prefill, decode, kv, sequences, attention)
    engine.prefill_before, engine.decode_before = engine.prefill, engine.decode
    engine.prefill, engine.decode = prefill, decode if sequences > 0 else -1
    engine.facts.decoded += decode
    engine.facts.prefilled += prefill
    step.running = engine.running
    step.paused = engine.paused
    step.waiting = engine.waiting
    step.free_blocks = engine.free_blocks
    step.prefill_tokens = prefill
    step.decode_tokens = decode
    step.requests = sequences
    step.kv_tokens = kv
    step.attention_tokens = int(attention)
    step.start_s = engine.starts_s
    step.duration_s = seconds
    return sequences, seconds


@compiled_here
def _emit(replica: Replica, now: float) -> bool:
    """Each request whose known tokens are all computed gets its next one. Returns: one ended."""
    limits, rules, engine = replica.limits, replica.rules, replica.engine
    batch, requests, token_times = replica.batch, replica.requests, replica.token_times
    ended = False
    keeps_times = len(token_times) > 0
    for k in range(engine.running):
        slot = batch.slots[batch.running[k]]
        complete = slot.scheduled > 0 and slot.computed == slot.known
        if slot.scheduled > 0:
            slot.chunk = not complete
        slot.scheduled = 0
        if rules.refines and slot.in_flight > 0 and slot.age == 1:
            read_prompt(replica, slot.request)
        slot.in_flight = 0
        if not complete or slot.age >= slot.output:
            continue
        slot.age += 1
        slot.known += 1
        slot.in_flight = limits.lag
        if slot.age == 1:
            requests[slot.request].first_token_s = now
            if rules.refines and limits.lag == 0:
                read_prompt(replica, slot.request)
        elif now - slot.last_token_s > slot.gap_s:
            slot.gap_s = now - slot.last_token_s
        slot.last_token_s = now
        if keeps_times:
            place = replica.token_offsets[slot.request] + slot.age - 1
            token_times[place] = now - requests[slot.request].arrival_s
        if slot.age == slot.output:
            served = requests[slot.request]
            served.finish_s = now
            served.longest_gap_s = slot.gap_s
            engine.outstanding -= 1
            ended = True
    return ended


@compiled_here
def _settle_paused(replica: Replica) -> None:
    """With a lag the scheduler hears of the last token of a request after it was paused."""
    limits, batch = replica.limits, replica.batch
    for k in range(replica.engine.paused):
        s = batch.paused[k]
        slot = batch.slots[s]
        if slot.in_flight == 0:
            continue
        slot.in_flight = 0
        first = slot.named // limits.block_size
        slot.named = min(slot.computed, slot.known)
        if limits.shares:
            name_full_blocks(replica, s, first)


@compiled_here
def _count_steps(replica: Replica) -> None:
    """Note which requests run in this step, for the guard that counts steps."""
    engine, batch = replica.engine, replica.batch
    for k in range(engine.running):
        slot = batch.slots[batch.running[k]]
        if slot.scheduled > 0:
            request = replica.queue.order.table[replica.requests[slot.request].row]
            request.last_step = engine.step
            request.promoted = max(request.promoted - 1, 0)
