"""How requests take slots of an engine, use them and leave them."""

from __future__ import annotations

import math
from typing import Any

from lengthwise.compiled import compiled_here
from lengthwise.policy.cutoff import observed, share_lost
from lengthwise.policy.select import blocks_for
from lengthwise.policy.tenants import service
from lengthwise.request import LOOKING, RUNNING, WAITING
from lengthwise.simulate.arrival import read_prompt
from lengthwise.simulate.kv_blocks import free_block, name_block, share_block, take_block
from lengthwise.simulate.kv_runs import NOBODY, give_to_runs, take_from_runs, take_run_back
from lengthwise.simulate.prefix_cache import cached_block, content_of
from lengthwise.simulate.replica import Replica


@compiled_here
def start(replica: Replica, i: int, hits: int, tokens: int) -> None:
    """Request i takes a slot, finds `hits` blocks of its KV and computes some tokens."""
    limits, rules, engine = replica.limits, replica.rules, replica.engine
    batch, memory = replica.batch, replica.memory
    served = replica.requests[i]
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
            block = cached_block(replica, i, place)
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
        request = replica.queue.order.table[served.row]
        request.state = RUNNING
        served.looks += request.look == LOOKING
        if request.look != LOOKING:
            note_admission(replica, request)
        guards = replica.ranking.guards[0]
        starved = request.idle_steps >= guards.starvation_threshold
        if rules.counts_steps and request.promoted == 0 and starved:
            request.promoted = guards.starvation_quantum
    else:
        engine.first = served.next
        if engine.first < 0:
            engine.last = -1
    compute(replica, s, tokens)


@compiled_here
def compute(replica: Replica, s: int, tokens: int) -> None:
    """The request of a slot computes some tokens in this step; there are enough blocks."""
    limits, engine, memory = replica.limits, replica.engine, replica.memory
    slot, size = replica.batch.slots[s], limits.block_size
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
            take_from_runs(engine, memory.runs, need - count)
        return
    for place in range(count, need):
        memory.of_slot[s, place] = take_block(memory, replica.requests)
    name_full_blocks(replica, s, first)


@compiled_here
def name_full_blocks(replica: Replica, s: int, first: int) -> None:
    """From the block at place `first` of a slot's request on, those that are full can be found."""
    memory, slot = replica.memory, replica.batch.slots[s]
    for place in range(first, slot.named // replica.limits.block_size):
        content = content_of(replica, slot.request, place)
        block = memory.of_slot[s, place]
        name_block(memory, replica.requests, block, slot.request, place, content)


@compiled_here
def retire(replica: Replica) -> None:
    """Requests whose answers have ended give everything back."""
    limits, engine, batch = replica.limits, replica.engine, replica.batch
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
            _forget(replica, slot.request)
            _give_blocks_back(replica, s, NOBODY)
            # The list is still being read, its free end is not.
            batch.free[free] = s
            free += 1
            if replica.rules.reorders:
                _release_row(replica, slot.request)
        if group == 0:
            engine.running = kept
        else:
            engine.paused = kept
    for _ in range(ended):
        engine.facts.thrown_out = observed(engine.facts.thrown_out, 0.0)


@compiled_here
def note_admission(replica: Replica, request: Any) -> None:
    """A request has got a slot: at the next ranking it counts for those that it has overtaken."""
    engine, queue = replica.engine, replica.queue
    queue.admitted[engine.admitted, 0] = request.arrival_index
    queue.admitted[engine.admitted, 1] = request.priority
    engine.admitted += 1


@compiled_here
def note_memory_preemption(replica: Replica, i: int) -> None:
    """A request loses its memory because there is too little."""
    facts, served = replica.engine.facts, replica.requests[i]
    served.memory_preemptions += 1
    replica.queue.order.table[served.row].memory_preemptions += 1
    facts.thrown_out = observed(facts.thrown_out, 1.0)


@compiled_here
def preempt(replica: Replica, place: int) -> None:
    """The request at a place of `running` goes back to the head of the queue."""
    engine, batch = replica.engine, replica.batch
    s = batch.running[place]
    for k in range(place, engine.running - 1):
        batch.running[k] = batch.running[k + 1]
    put_back(replica, s)
    engine.running -= 1


@compiled_here
def put_back(replica: Replica, s: int) -> None:
    """The request of a slot goes back to the head of the queue; it still counts in the batch."""
    limits, rules, engine = replica.limits, replica.rules, replica.engine
    batch, requests = replica.batch, replica.requests
    slot = batch.slots[s]
    i = slot.request
    served = requests[i]
    slot.scheduled = 0
    ended = slot.age >= slot.output
    if limits.shares and not ended and served.memory < 0:
        _remember(replica, s)
    _give_blocks_back(replica, s, NOBODY if ended else i)
    batch.free[limits.places - engine.running - engine.paused] = s
    if ended:
        # With a lag its last token was on its way: it is done, and not put back.
        engine.ended_waiting += 1
        _forget(replica, i)
        if rules.reorders:
            _release_row(replica, i)
        return
    engine.waiting += 1
    engine.head -= 1
    served.age = slot.age
    served.lost = slot.computed
    served.last_token_s = slot.last_token_s
    served.longest_gap_s = slot.gap_s
    if rules.reorders:
        request = replica.queue.order.table[served.row]
        request.state = WAITING
        request.sequence = engine.head
        request.age = slot.age - slot.in_flight
        request.computed_tokens = 0
        request.look = 0
        request.last_step = engine.step
        if rules.refines and slot.in_flight > 0 and slot.age == 1:
            read_prompt(replica, i)
        return
    served.next = engine.first
    if engine.first < 0:
        engine.last = i
    engine.first = i


@compiled_here
def _remember(replica: Replica, s: int) -> None:
    """From now on it is kept track of which blocks hold what is a request's own."""
    engine, memory, slot = replica.engine, replica.memory, replica.batch.slots[s]
    row = memory.free_remembered[len(memory.free_remembered) - engine.remembered - 1]
    engine.remembered += 1
    replica.requests[slot.request].memory = row
    memory.remembered[row, :] = -1
    for place in range(slot.named // replica.limits.block_size):
        block = memory.of_slot[s, place]
        if memory.blocks[block].owner == slot.request:
            memory.remembered[row, place] = block


@compiled_here
def _forget(replica: Replica, i: int) -> None:
    """A request is done: nobody will look for its own blocks."""
    served = replica.requests[i]
    if not replica.limits.shares or served.memory < 0:
        return
    engine, free = replica.engine, replica.memory.free_remembered
    engine.remembered -= 1
    free[len(free) - engine.remembered - 1] = served.memory
    served.memory = -1


@compiled_here
def _give_blocks_back(replica: Replica, s: int, owner: int) -> None:
    """The last block first, so that it is overwritten first and a usable prefix is left.

    Args:
        replica: the engine.
        s: a slot.
        owner: its request, if that may find them again, else NOBODY.
    """
    limits, engine, memory = replica.limits, replica.engine, replica.memory
    slot = replica.batch.slots[s]
    if limits.shares:
        for place in range(slot.blocks - 1, -1, -1):
            engine.free_blocks += free_block(memory.blocks, memory.of_slot[s, place])
    else:
        engine.free_blocks += slot.blocks
        if limits.caching:
            full = slot.named // limits.block_size
            give_to_runs(engine, memory.runs, replica.requests, owner, full, slot.blocks)
    slot.blocks = 0


@compiled_here
def _release_row(replica: Replica, i: int) -> None:
    """Take the row of a request that is gone back: the last row moves into its place."""
    engine, requests, queue = replica.engine, replica.requests, replica.queue
    table, groups, ranks = queue.order
    row = requests[i].row
    requests[i].overtaken = table[row].overtaken
    tenant = queue.shares.tenants[requests[i].tenant]
    tenant.ended += service(requests[i].prompt_tokens, requests[i].output_tokens)
    requests[i].row = -1
    engine.live -= 1
    last = engine.live
    if row != last:
        table[row] = table[last]
        groups[row] = groups[last]
        ranks[row] = ranks[last]
        queue.request[row] = queue.request[last]
        requests[queue.request[row]].row = row
