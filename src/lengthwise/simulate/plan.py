"""The pre-pass of a step: the policy's order, and swaps that pay. As in `vllm/plan.py`.

What decides (ranks, guards, swaps, victims, predicted growth) is imported from `policy`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.policy.cutoff import FADES, cutoff
from lengthwise.policy.memory import fitting
from lengthwise.policy.order import first_in_order, victims_last
from lengthwise.policy.rollout import LOOKAHEAD
from lengthwise.policy.select import (
    SPARE,
    SWAP_EVERY,
    Engine,
    blocks_for,
    choose_swaps,
    outranked_by_any,
)
from lengthwise.simulate.kv_blocks import Memory
from lengthwise.simulate.prefix_cache import find_cached
from lengthwise.simulate.slots import preempt
from lengthwise.simulate.state import Batch, Integers, Queue, Shared

Ranking = Any  #: the rank pointer, its parameter values, the guards and the rules


@compiled_here
def plan_step(
    ranking: Ranking,
    limits: Any,
    terms: NDArray[np.float64],
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    batch: Batch,
    memory: Memory,
) -> tuple[Integers, bool]:
    """Preempt where that pays, and put memory victims last; see `run_step` for the arguments.

    Returns:
        The only rows that may come in, and whether there is such a limit.
    """
    rules = ranking[3][0]
    front = np.empty(0, np.int64)
    has_front = False
    if not rules.reorders:
        return front, has_front
    if rules.service_time:
        # A step gives a token to each running request: a token's share is one over their number.
        running = max(engine.running, 1)
        engine.prefill_weight = terms[1] * running / _decode_s(terms, engine, batch)
    if rules.adapts >= 0 and engine.running > 0 and engine.step % SWAP_EVERY == 0:
        _adapt(terms, engine, requests, queue, batch)
    busy = engine.waiting > 0 and engine.running > 0
    if busy and rules.preempts and engine.step % SWAP_EVERY == 0:
        front, has_front = _swap(
            ranking, limits, terms, engine, requests, shared, queue, batch, memory
        )
    looks_ahead = rules.memory_growth > 0.0 and engine.waiting > 0
    if looks_ahead and not has_front and engine.running < limits.slots:
        front, has_front = _front_that_fits(
            ranking, limits, engine, requests, shared, queue, batch, memory
        )
    if _memory_is_short(limits, engine, batch):
        _put_victims_last(ranking, limits, engine, requests, shared, queue, batch, memory)
    return front, has_front


@compiled_here
def rank_once(
    ranking: Ranking,
    limits: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    memory: Memory,
    everyone: bool,
) -> None:
    """Rank all requests, or only those that wait, once a step."""
    if engine.ranked_step == engine.step:
        return
    engine.ranked_step = engine.step
    rules = ranking[3][0]
    if rules.reads_prefix_cache and limits.caching:
        # A look-up is too dear for all: those who would be next.
        _rank(ranking, engine, queue, np.empty(0, np.int64), everyone)
        want = max(limits.slots - engine.running, 0) + SPARE
        for row in first_rows(rules, engine, queue, want):
            hits, _ = find_cached(limits, engine, requests, shared, memory, queue.request[row])
            queue.table[row].cached_tokens = hits * limits.block_size
    admitted = np.sort(queue.admitted[: engine.admitted])
    engine.admitted = 0
    _rank(ranking, engine, queue, admitted, everyone)


@compiled_here
def first_rows(rules: Any, engine: Any, queue: Queue, want: int) -> Integers:
    """The best `want` waiting rows."""
    return first_in_order(
        queue.table,
        engine.live,
        queue.groups,
        queue.ranks,
        rules.blend,
        engine.admissions,
        want,
    )


@compiled_here
def _rank(ranking: Ranking, engine: Any, queue: Queue, admitted: Integers, everyone: bool) -> None:
    rank, values, guards, rules = ranking
    if rules[0].adapts >= 0:
        values[rules[0].adapts] = engine.cutoff
    rank(
        values,
        guards,
        queue.table,
        engine.live,
        engine.plans_s,
        engine.step,
        engine.prefill_weight,
        admitted,
        everyone,
        queue.groups,
        queue.ranks,
    )


@compiled_here
def _bring_running_up_to_date(engine: Any, requests: Any, queue: Queue, batch: Batch) -> Integers:
    """Write the columns of running requests that change with every token; returns their rows."""
    rows = np.empty(engine.running, np.int64)
    for k in range(engine.running):
        slot = batch.slots[batch.running[k]]
        rows[k] = requests[slot.request].row
        queue.table[rows[k]].age = slot.age - slot.in_flight
        queue.table[rows[k]].computed_tokens = slot.computed
    return rows


@compiled_here
def _adapt(
    terms: NDArray[np.float64], engine: Any, requests: Any, queue: Queue, batch: Batch
) -> None:
    """Set the parameter that is "auto" by the present prices."""
    prompt, predicted = 0.0, 0.0
    for k in range(engine.running):
        slot = batch.slots[batch.running[k]]
        request = queue.table[requests[slot.request].row]
        prompt += request.prompt_tokens
        predicted += request.initial
    engine.lost_share *= FADES
    engine.cutoff = cutoff(
        prompt / engine.running,
        predicted / engine.running,
        engine.running + engine.waiting,
        engine.lost_share,
        engine.thrown_out,
        _decode_s(terms, engine, batch),
        terms[1],
    )


@compiled_here
def _swap(
    ranking: Ranking,
    limits: Any,
    terms: NDArray[np.float64],
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    batch: Batch,
    memory: Memory,
) -> tuple[Integers, bool]:
    """Preempt for newcomers where that pays; then only those newcomers may come in."""
    rules = ranking[3][0]
    nobody = np.empty(0, np.int64)
    rows = _bring_running_up_to_date(engine, requests, queue, batch)
    rank_once(ranking, limits, engine, requests, shared, queue, memory, True)
    free_slots = max(limits.slots - engine.running, 0)
    waiting = first_rows(rules, engine, queue, LOOKAHEAD * (free_slots + engine.running))
    newcomers = waiting[: free_slots + rules.max_swaps]
    preemptible = outranked_by_any(queue.groups, queue.ranks, rows, newcomers)
    freed = np.zeros(engine.running, np.int64)
    growth, wanted, anyone = 0, 0, False
    for k in range(engine.running):
        slot = batch.slots[batch.running[k]]
        tokens = slot.known - slot.computed
        wanted += tokens
        growth += blocks_for(slot.known, limits.block_size)
        growth -= blocks_for(slot.computed, limits.block_size)
        preemptible[k] = (
            preemptible[k]
            and not slot.chunk
            and 0 < slot.age - slot.in_flight < slot.output
            and queue.table[rows[k]].preemptions < rules.max_preemptions
        )
        if preemptible[k]:
            anyone = True
            freed[k] = _blocks_freed(limits, slot, batch.running[k], memory)
    if not anyone:
        return nobody, False
    victims, admitted = choose_swaps(
        rules.greedy,
        rules.max_swaps,
        queue.groups,
        queue.ranks,
        queue.table,
        waiting,
        rows,
        preemptible,
        freed,
        Engine(
            free_slots,
            engine.free_blocks - growth - limits.watermark_blocks,
            limits.token_budget - wanted,
            limits.block_size,
            limits.caching,
            engine.running + engine.waiting,
            _decode_s(terms, engine, batch),
            terms[1],
            engine.tokens_per_step,
        ),
    )
    if len(victims) == 0:
        return nobody, False
    for row in victims:
        i = queue.request[row]
        place = 0
        while batch.slots[batch.running[place]].request != i:
            place += 1
        queue.table[row].preemptions += 1
        requests[i].preemptions += 1
        preempt(rules, limits, engine, requests, queue, batch, memory, place)
    return waiting[:admitted], True


@compiled_here
def _decode_s(terms: NDArray[np.float64], engine: Any, batch: Batch) -> float:
    """Seconds of a step in which all running requests, or one, decode."""
    context = 0
    for k in range(engine.running):
        context += batch.slots[batch.running[k]].computed
    return float(terms[0] + (terms[2] + terms[4]) * max(engine.running, 1) + terms[3] * context)


@compiled_here
def _blocks_freed(limits: Any, slot: Any, s: int, memory: Memory) -> int:
    """Blocks that preempting a slot's request frees: those that no other request shares."""
    if not limits.shares:
        return int(slot.blocks)
    freed = 0
    for place in range(slot.blocks):
        freed += memory.blocks[memory.of_slot[s, place]].users == 1
    return freed


@compiled_here
def _front_that_fits(
    ranking: Ranking,
    limits: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    batch: Batch,
    memory: Memory,
) -> tuple[Integers, bool]:
    """The waiting rows whose predicted growth fits, when some does not."""
    running = _bring_running_up_to_date(engine, requests, queue, batch)
    rank_once(ranking, limits, engine, requests, shared, queue, memory, True)
    rules = ranking[3][0]
    waiting = first_rows(rules, engine, queue, limits.slots - engine.running)
    count = fitting(
        queue.table,
        running,
        waiting,
        rules.memory_growth,
        engine.free_blocks,
        limits.block_size,
    )
    return waiting[:count], count < len(waiting)


@compiled_here
def _memory_is_short(limits: Any, engine: Any, batch: Batch) -> bool:
    """Whether requests may have to be preempted in this step because blocks run out."""
    size = limits.block_size
    if engine.free_blocks >= engine.running + blocks_for(limits.token_budget, size):
        return False
    wanted = 0
    for k in range(engine.running):
        slot = batch.slots[batch.running[k]]
        wanted += blocks_for(slot.known - slot.computed, size)
    return bool(engine.free_blocks < wanted)


@compiled_here
def _put_victims_last(
    ranking: Ranking,
    limits: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    batch: Batch,
    memory: Memory,
) -> None:
    """Order `running`, from whose tail memory victims are taken."""
    rows = _bring_running_up_to_date(engine, requests, queue, batch)
    rank_once(ranking, limits, engine, requests, shared, queue, memory, True)
    prefilling = np.empty(engine.running, np.bool_)
    for k in range(engine.running):
        prefilling[k] = batch.slots[batch.running[k]].chunk
    places = victims_last(queue.table, queue.groups, queue.ranks, rows, prefilling)
    batch.running[: engine.running] = batch.running[: engine.running][places]
