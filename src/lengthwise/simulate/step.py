"""One step of one engine, as vLLM V1's scheduler plans it (v1/core/sched/scheduler.py).

The plan: running requests in order, each as many tokens as the budget leaves it, preempting from
the tail where blocks run out; then waiting ones while there are slots, budget and blocks for the
whole of their known tokens. Before it comes the pre-pass of the vLLM adapter (`plan.py`).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.policy.cutoff import observed
from lengthwise.policy.prepass import SPARE
from lengthwise.policy.select import blocks_for
from lengthwise.policy.step_time import observe
from lengthwise.request import WAITING
from lengthwise.simulate.foretell import Recent, foretell, read_prompt
from lengthwise.simulate.kv_blocks import Memory
from lengthwise.simulate.kv_runs import take_from_runs
from lengthwise.simulate.plan import Ranking, first_rows, plan_step, rank_once
from lengthwise.simulate.prefix_cache import find_cached
from lengthwise.simulate.slots import compute, name_full_blocks, preempt, retire, start
from lengthwise.simulate.state import Batch, Integers, Queue, Shared
from lengthwise.simulate.step_cost import step_seconds

_NOBODY = np.empty(0, np.int64)


@compiled_here
def arrive(engine: Any, requests: Any, rules: Any, i: int) -> None:
    """Request i joins the queue of an engine; where that is reordered, `enter` comes next."""
    served = requests[i]
    engine.outstanding += 1
    engine.tail += 1
    engine.waiting += 1
    engine.arrivals += 1
    if not rules.reorders:
        served.next = -1
        if engine.last >= 0:
            requests[engine.last].next = i
        else:
            engine.first = i
        engine.last = i


@compiled_here
def enter(limits: Any, engine: Any, served: Any, queue: Queue, i: int) -> None:
    """Request i gets its row in the table that policies see.

    Its arrival is noted when the engine sees it, which is before the step that it plans next.
    """
    row = engine.live
    engine.live += 1
    served.row = row
    queue.request[row] = i
    request = queue.table[row]
    request.state = WAITING
    request.age = 0
    request.sequence = engine.tail
    request.priority = served.priority
    request.deadline_s = served.deadline_s
    request.tenant = served.tenant
    request.arrival_index = engine.arrivals - 1
    # Nothing is predicted of it, unless `expect` comes next.
    request.score = request.expected = request.initial = request.remaining = 0.0
    request.low = request.median = request.high = 0.0
    request.predicted = request.predicted_age = 0
    request.arrival_s = engine.plans_s
    request.overtaken = 0
    request.ahead = _ahead(limits, engine, queue, row)
    request.promoted = 0
    request.decoded_before = engine.facts.decoded
    request.prefilled_before = engine.facts.prefilled
    request.queued_work = 0.0
    request.prompt_tokens = served.prompt_tokens
    request.cached_tokens = 0
    request.computed_tokens = 0
    request.preemptions = 0
    request.adapter = 0
    request.pauses = 0
    request.look = 0
    request.last_step = engine.step


@compiled_here
def _ahead(limits: Any, engine: Any, queue: Queue, row: int) -> int:
    """Requests of the same class that wait when the one in a row, the last, arrives."""
    if not limits.classes:
        return int(engine.waiting - 1)
    count = 0
    for k in range(row):
        waits = queue.table[k].state == WAITING
        count += int(waits and queue.table[k].priority == queue.table[row].priority)
    return count


@compiled_here
def run_step(
    ranking: Ranking,
    limits: Any,
    terms: NDArray[np.float64],
    times: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    recent: Recent,
    batch: Batch,
    memory: Memory,
    token_times: NDArray[np.float32],
    token_offsets: Integers,
    step: Any,
) -> bool:
    """Plan a step of an engine and let it happen.

    Args:
        ranking: where the ranking begins, its parameter values, the guards and the rules.
        limits: a LIMITS record.
        terms: `StepCost.terms`.
        times: a STEP_TIME record, written: what steps are measured to cost.
        engine: an ENGINE record, written.
        requests: array of SERVED, written.
        shared: what prompts share.
        queue: written.
        recent: written.
        batch: written.
        memory: written.
        token_times: written, unless it is empty: s from arrival of every token.
        token_offsets: where each request's begin.
        step: a STEP record, written: what was done.

    Returns:
        Whether anything ran.
    """
    engine.step += 1
    rules = ranking[3][0]
    if rules.measures_steps:
        _measure(limits, times, engine)
    engine.planned_s = engine.plans_s
    if rules.predicts:
        foretell(engine, requests, queue, recent)
    front, has_front, preempted = _NOBODY, False, 0
    if rules.reorders:
        front, has_front, preempted = plan_step(
            ranking, limits, times, engine, requests, shared, queue, batch, memory
        )
    budget, for_memory = _serve_running(
        rules, limits, engine, requests, shared, queue, batch, memory
    )
    old = engine.running
    if for_memory == 0 and budget > 0 and engine.waiting > 0 and old < limits.slots:
        _admit(
            ranking,
            limits,
            engine,
            requests,
            shared,
            queue,
            batch,
            memory,
            budget,
            front,
            has_front,
        )
    sequences, seconds = _work(limits, terms, engine, batch.slots, batch.running, old, step)
    step.preempted = preempted + for_memory
    if limits.lag > 0:
        retire(rules, limits, engine, requests, queue, batch, memory)
        _settle_paused(limits, engine, requests, shared, batch, memory)
    if rules.counts_steps:
        _count_steps(engine, requests, queue, batch)
    starts_s = engine.starts_s
    end = starts_s + seconds
    ended = _emit(rules, limits, engine, requests, queue, batch, token_times, token_offsets, end)
    if limits.lag == 0 and ended:
        retire(rules, limits, engine, requests, queue, batch, memory)
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
def _serve_running(
    rules: Any,
    limits: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    batch: Batch,
    memory: Memory,
) -> tuple[int, int]:
    """Give running requests their tokens. Returns the budget left and how many were preempted."""
    slots, running = batch.slots, batch.running
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
            requests[slots[running[last]].request].memory_preemptions += 1
            engine.facts.thrown_out = observed(engine.facts.thrown_out, 1.0)
            own = running[last] == s
            preempt(rules, limits, engine, requests, queue, batch, memory, last)
            preempted += 1
            if own:
                return budget, preempted
        compute(
            limits,
            engine,
            requests,
            shared,
            slot,
            memory.blocks,
            memory.shared,
            memory.remembered,
            memory.of_slot[s],
            memory.runs,
            tokens,
        )
        budget -= tokens
    return budget, preempted


@compiled_here
def _admit(
    ranking: Ranking,
    limits: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    batch: Batch,
    memory: Memory,
    budget: int,
    front: Integers,
    has_front: bool,
) -> None:
    """Let waiting requests in, in order, until one does not fit.

    Args:
        ranking: see `run_step`, as are the next seven.
        limits: see `run_step`.
        engine: see `run_step`.
        requests: see `run_step`.
        shared: see `run_step`.
        queue: see `run_step`.
        batch: see `run_step`.
        memory: see `run_step`.
        budget: tokens left in the step.
        front: the only rows that may come in, where they are already chosen.
        has_front: whether they are.
    """
    rules = ranking[3][0]
    order, cursor = front, 0
    while budget > 0 and engine.running < limits.slots and engine.waiting > 0:
        if not rules.reorders:
            i = engine.first
        else:
            if cursor == len(order):
                if has_front:
                    return
                rank_once(ranking, limits, engine, requests, shared, queue, memory, False)
                want = limits.slots - engine.running + SPARE
                order = first_rows(rules, engine, queue, want)
                if len(order) == 0:
                    return
                cursor = 0
            i = queue.request[order[cursor]]
            cursor += 1
        hits, free_hits = 0, 0
        if limits.caching:
            hits, free_hits = find_cached(limits, engine, requests, shared, memory, i)
        known = requests[i].prompt_tokens + requests[i].age
        watermark = limits.watermark_blocks if engine.running > 0 else 0
        need = blocks_for(known, limits.block_size) - hits + free_hits + watermark
        if need > engine.free_blocks:
            return
        tokens = known - hits * limits.block_size
        if _are_several(engine) and 0 < limits.long_prefill_tokens < tokens:
            tokens = limits.long_prefill_tokens
        tokens = min(tokens, budget)
        start(
            rules,
            ranking[2][0],
            limits,
            engine,
            requests,
            shared,
            queue,
            batch,
            memory,
            i,
            hits,
            tokens,
        )
        budget -= tokens


@compiled_here
def _are_several(engine: Any) -> bool:
    """Whether a long prefill has to leave room for others. One that was preempted while its last
    token was on its way is among them: the scheduler does not know yet that it has ended."""
    return bool(engine.running + engine.paused + engine.waiting + engine.ended_waiting > 1)


@compiled_here
def _work(
    limits: Any,
    terms: NDArray[np.float64],
    engine: Any,
    slots: Any,
    running: Integers,
    old: int,
    step: Any,
) -> tuple[int, float]:
    """What the planned step does, written to `step`.

    Args:
        limits: see `run_step`.
        terms: see `run_step`.
        engine: see `run_step`.
        slots: of the batch.
        running: of the batch.
        old: how many of `running` were there before this step.
        step: written.

    Returns:
        How many requests run in it, and its seconds.
    """
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
        seconds = step_seconds(terms, prefill, decode, kv, sequences, attention)
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
def _emit(
    rules: Any,
    limits: Any,
    engine: Any,
    requests: Any,
    queue: Queue,
    batch: Batch,
    token_times: NDArray[np.float32],
    token_offsets: Integers,
    now: float,
) -> bool:
    """Each request whose known tokens are all computed gets its next one. Returns: one ended."""
    ended = False
    keeps_times = len(token_times) > 0
    for k in range(engine.running):
        slot = batch.slots[batch.running[k]]
        complete = slot.scheduled > 0 and slot.computed == slot.known
        if slot.scheduled > 0:
            slot.chunk = not complete
        slot.scheduled = 0
        if rules.refines and slot.in_flight > 0 and slot.age == 1:
            read_prompt(requests, queue, slot.request)
        slot.in_flight = 0
        if not complete or slot.age >= slot.output:
            continue
        slot.age += 1
        slot.known += 1
        slot.in_flight = limits.lag
        if slot.age == 1:
            requests[slot.request].first_token_s = now
            if rules.refines and limits.lag == 0:
                read_prompt(requests, queue, slot.request)
        elif now - slot.last_token_s > slot.gap_s:
            slot.gap_s = now - slot.last_token_s
        slot.last_token_s = now
        if keeps_times:
            place = token_offsets[slot.request] + slot.age - 1
            token_times[place] = now - requests[slot.request].arrival_s
        if slot.age == slot.output:
            served = requests[slot.request]
            served.finish_s = now
            served.longest_gap_s = slot.gap_s
            engine.outstanding -= 1
            ended = True
    return ended


@compiled_here
def _settle_paused(
    limits: Any, engine: Any, requests: Any, shared: Shared, batch: Batch, memory: Memory
) -> None:
    """With a lag the scheduler hears of the last token of a request after it was paused."""
    for k in range(engine.paused):
        s = batch.paused[k]
        slot = batch.slots[s]
        if slot.in_flight == 0:
            continue
        slot.in_flight = 0
        first = slot.named // limits.block_size
        slot.named = min(slot.computed, slot.known)
        if limits.shares:
            name_full_blocks(
                limits,
                requests,
                shared,
                slot,
                memory.blocks,
                memory.shared,
                memory.remembered,
                memory.of_slot[s],
                first,
            )


@compiled_here
def _count_steps(engine: Any, requests: Any, queue: Queue, batch: Batch) -> None:
    """Note which requests run in this step, for the guard that counts steps."""
    for k in range(engine.running):
        slot = batch.slots[batch.running[k]]
        if slot.scheduled > 0:
            request = queue.table[requests[slot.request].row]
            request.last_step = engine.step
            request.promoted = max(request.promoted - 1, 0)
