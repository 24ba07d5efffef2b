"""One step of one engine: what comes before it, its plan, and what happens in it.

Before the plan of vLLM's scheduler (`schedule.py`) comes the pre-pass of the vLLM adapter
(`plan.py`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lengthwise.compiled import compiled_here
from lengthwise.policy.step_time import observe
from lengthwise.simulate.arrival import foretell, read_prompt
from lengthwise.simulate.plan import plan_step
from lengthwise.simulate.replica import Replica
from lengthwise.simulate.schedule import admit_waiting, serve_running
from lengthwise.simulate.slots import name_full_blocks, retire
from lengthwise.simulate.step_cost import step_seconds

_NOBODY = np.empty(0, np.int64)


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
    front, has_front, preempted = _NOBODY, False, 0
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
