"""How requests take slots of an engine, use them and leave them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.policy.cutoff import observed, share_lost
from lengthwise.policy.select import blocks_for
from lengthwise.policy.tenants import service
from lengthwise.request import LOOKING, RUNNING, WAITING
from lengthwise.simulate.foretell import read_prompt
from lengthwise.simulate.kv_blocks import Memory, free_block, name_block, share_block, take_block
from lengthwise.simulate.kv_runs import NOBODY, give_to_runs, take_from_runs, take_run_back
from lengthwise.simulate.prefix_cache import cached_block, content_of
from lengthwise.simulate.state import Batch, Queue, Shared


@compiled_here
def start(
    rules: Any,
    guards: Any,
    limits: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    batch: Batch,
    memory: Memory,
    i: int,
    hits: int,
    tokens: int,
) -> None:
    """Request i takes a slot, finds `hits` blocks of its KV and computes some tokens."""
    served = requests[i]
    s = batch.free[limits.places - engine.running - engine.paused - 1]
    batch.running[engine.running] = s
    engine.running += 1
    engine.waiting -= 1
    engine.admissions += 1
    slot = batch.slots[s]
    slot.request = i
    slot.age = served.age
    slot.in_flight = 0
    slot.chunk = False
    slot.known = served.prompt_tokens + served.age
    slot.output = served.output_tokens
    slot.computed = slot.named = hits * limits.block_size
    slot.blocks = hits
    slot.last_token_s = served.last_token_s
    slot.gap_s = served.longest_gap_s
    if limits.shares:
        for place in range(hits):
            block = cached_block(limits, requests, shared, memory, i, place)
            memory.of_slot[s, place] = block
            engine.free_blocks -= share_block(memory.blocks, block)
    else:
        engine.free_blocks -= hits
    if served.memory >= 0 and not limits.shares:
        # What is left of its old blocks is in use again, the rest is computed anew.
        take_run_back(engine, memory.runs, served.memory, hits)
        served.memory = -1
    if math.isnan(served.scheduled_s):
        served.scheduled_s = engine.starts_s
        served.cached_tokens = slot.computed
    else:
        lost = max(served.lost - slot.computed, 0)
        served.recomputed_tokens += lost
        facts = engine.facts
        facts.lost_share = observed(facts.lost_share, share_lost(served.lost, lost))
    if rules.reorders:
        request = queue.table[served.row]
        request.state = RUNNING
        served.looks += request.look == LOOKING
        if request.look != LOOKING:
            note_admission(engine, queue, request)
        if (
            rules.counts_steps
            and request.promoted == 0
            and request.idle_steps >= guards.starvation_threshold
        ):
            request.promoted = guards.starvation_quantum
    else:
        engine.first = served.next
        if engine.first < 0:
            engine.last = -1
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


@compiled_here
def compute(
    limits: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    slot: Any,
    blocks: Any,
    found: NDArray[np.int32],
    remembered: NDArray[np.int32],
    own: NDArray[np.int32],
    runs: NDArray[np.void],
    tokens: int,
) -> None:
    """A slot's request computes some tokens in this step; there are enough blocks.

    Args:
        limits: a LIMITS record.
        engine: an ENGINE record.
        requests: array of SERVED.
        shared: what prompts share.
        slot: a SLOT record.
        blocks: of the engine's memory.
        found: `shared` of the engine's memory.
        remembered: of the engine's memory.
        own: the slot's row of `of_slot`.
        runs: of the engine's memory.
        tokens: how many.
    """
    size = limits.block_size
    first = slot.named // size
    slot.computed += tokens
    # vLLM names a full block when it plans the step, by the tokens that it knows then.
    slot.named = min(slot.computed, slot.known - slot.in_flight)
    slot.scheduled = tokens
    need = blocks_for(slot.computed, size)
    count = slot.blocks
    if need > count:
        engine.free_blocks -= need - count
        slot.blocks = need
    if not limits.shares:
        if limits.caching and need > count:
            take_from_runs(engine, runs, need - count)
        return
    for place in range(count, need):
        own[place] = take_block(blocks, requests, found, remembered)
    name_full_blocks(limits, requests, shared, slot, blocks, found, remembered, own, first)


@compiled_here
def name_full_blocks(
    limits: Any,
    requests: Any,
    shared: Shared,
    slot: Any,
    blocks: Any,
    found: NDArray[np.int32],
    remembered: NDArray[np.int32],
    own: NDArray[np.int32],
    first: int,
) -> None:
    """From the block at place `first` on, those that are full can be found; see `compute`."""
    for place in range(first, slot.named // limits.block_size):
        content = content_of(limits, requests, shared, slot.request, place)
        name_block(blocks, requests, found, remembered, own[place], slot.request, place, content)


@compiled_here
def retire(
    rules: Any, limits: Any, engine: Any, requests: Any, queue: Queue, batch: Batch, memory: Memory
) -> None:
    """Requests whose answers have ended give everything back."""
    ended = engine.ended_waiting
    engine.ended_waiting = 0
    free = limits.places - engine.running - engine.paused
    # With a lag the last token of a request may have been on its way when it was paused.
    for group in range(2):
        count = engine.running if group == 0 else engine.paused
        places = batch.running if group == 0 else batch.paused
        kept = 0
        for k in range(count):
            s = places[k]
            slot = batch.slots[s]
            if slot.age < slot.output:
                places[kept] = s
                kept += 1
                continue
            ended += 1
            slot.scheduled = 0
            _forget(limits, engine, requests, memory, slot.request)
            _give_blocks_back(limits, engine, requests, slot, s, memory, NOBODY)
            # The list is still being read, its free end is not.
            batch.free[free] = s
            free += 1
            if rules.reorders:
                _release_row(engine, requests, queue, slot.request)
        if group == 0:
            engine.running = kept
        else:
            engine.paused = kept
    for _ in range(ended):
        engine.facts.thrown_out = observed(engine.facts.thrown_out, 0.0)


@compiled_here
def note_admission(engine: Any, queue: Queue, request: Any) -> None:
    """A request has got a slot: at the next ranking it counts for those that it has overtaken."""
    queue.admitted[engine.admitted, 0] = request.arrival_index
    queue.admitted[engine.admitted, 1] = request.priority
    engine.admitted += 1


@compiled_here
def preempt(
    rules: Any,
    limits: Any,
    engine: Any,
    requests: Any,
    queue: Queue,
    batch: Batch,
    memory: Memory,
    place: int,
) -> None:
    """The request at a place of `running` goes back to the head of the queue."""
    s = batch.running[place]
    for k in range(place, engine.running - 1):
        batch.running[k] = batch.running[k + 1]
    put_back(rules, limits, engine, requests, queue, batch, memory, s)
    engine.running -= 1


@compiled_here
def put_back(
    rules: Any,
    limits: Any,
    engine: Any,
    requests: Any,
    queue: Queue,
    batch: Batch,
    memory: Memory,
    s: int,
) -> None:
    """The request of a slot goes back to the head of the queue; it still counts in the batch."""
    slot = batch.slots[s]
    i = slot.request
    served = requests[i]
    slot.scheduled = 0
    ended = slot.age >= slot.output
    if limits.shares and not ended and served.memory < 0:
        _remember(limits, engine, requests, memory, slot, s)
    _give_blocks_back(limits, engine, requests, slot, s, memory, NOBODY if ended else i)
    batch.free[limits.places - engine.running - engine.paused] = s
    if ended:
        # With a lag its last token was on its way: it is done, and not put back.
        engine.ended_waiting += 1
        _forget(limits, engine, requests, memory, i)
        if rules.reorders:
            _release_row(engine, requests, queue, i)
        return
    engine.waiting += 1
    engine.head -= 1
    served.age = slot.age
    served.lost = slot.computed
    served.last_token_s = slot.last_token_s
    served.longest_gap_s = slot.gap_s
    if rules.reorders:
        request = queue.table[served.row]
        request.state = WAITING
        request.sequence = engine.head
        request.age = slot.age - slot.in_flight
        request.computed_tokens = 0
        request.look = 0
        request.last_step = engine.step
        if rules.refines and slot.in_flight > 0 and slot.age == 1:
            read_prompt(requests, queue, i)
        return
    served.next = engine.first
    if engine.first < 0:
        engine.last = i
    engine.first = i


@compiled_here
def _remember(limits: Any, engine: Any, requests: Any, memory: Memory, slot: Any, s: int) -> None:
    """From now on it is kept track of which blocks hold what is a request's own."""
    row = memory.free_remembered[len(memory.free_remembered) - engine.remembered - 1]
    engine.remembered += 1
    requests[slot.request].memory = row
    memory.remembered[row, :] = -1
    for place in range(slot.named // limits.block_size):
        block = memory.of_slot[s, place]
        if memory.blocks[block].owner == slot.request:
            memory.remembered[row, place] = block


@compiled_here
def _forget(limits: Any, engine: Any, requests: Any, memory: Memory, i: int) -> None:
    """A request is done: nobody will look for its own blocks."""
    if not limits.shares or requests[i].memory < 0:
        return
    engine.remembered -= 1
    memory.free_remembered[len(memory.free_remembered) - engine.remembered - 1] = requests[i].memory
    requests[i].memory = -1


@compiled_here
def _give_blocks_back(
    limits: Any, engine: Any, requests: Any, slot: Any, s: int, memory: Memory, owner: int
) -> None:
    """The last block first, so that it is overwritten first and a usable prefix is left."""
    if limits.shares:
        for place in range(slot.blocks - 1, -1, -1):
            engine.free_blocks += free_block(memory.blocks, memory.of_slot[s, place])
    else:
        engine.free_blocks += slot.blocks
        if limits.caching:
            full = slot.named // limits.block_size
            give_to_runs(engine, memory.runs, requests, owner, full, slot.blocks)
    slot.blocks = 0


@compiled_here
def _release_row(engine: Any, requests: Any, queue: Queue, i: int) -> None:
    """Take the row of a request that is gone back: the last row moves into its place."""
    row = requests[i].row
    requests[i].overtaken = queue.table[row].overtaken
    tenant = queue.shares.tenants[requests[i].tenant]
    tenant.ended += service(requests[i].prompt_tokens, requests[i].output_tokens)
    requests[i].row = -1
    engine.live -= 1
    last = engine.live
    if row != last:
        queue.table[row] = queue.table[last]
        queue.groups[row] = queue.groups[last]
        queue.ranks[row] = queue.ranks[last]
        queue.request[row] = queue.request[last]
        requests[queue.request[row]].row = row
