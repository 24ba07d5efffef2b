"""How requests join an engine, take its slots, use them and leave them.

Before a request starts or resumes, it is looked up what it finds of its KV.

One that joins gets the row that policies see of it, and later they learn more: predictions come and
are stood in for as in `vllm/predictions.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.policy.guards import note_done, service
from lengthwise.policy.length_law import (
    MEDIAN_EVERY,
    PER_STEP,
    READ,
    READ_PER_STEP,
    RECENT,
    UNKNOWN,
    stand_in,
)
from lengthwise.policy.prices import observed, share_lost
from lengthwise.policy.select import blocks_for
from lengthwise.request import BY_PROBE, LOOKING, RUNNING, WAITING
from lengthwise.simulate.kv_blocks import (
    NOBODY,
    free_block,
    give_to_runs,
    left_of_run,
    name_block,
    share_block,
    take_block,
    take_from_runs,
    take_run_back,
)
from lengthwise.simulate.replica import Replica


@compiled_here
def find_cached(replica: Replica, i: int) -> tuple[int, int]:
    """Leading blocks of a waiting request that are cached, and how many of them are free.

    At least one of its tokens has to be computed.
    """
    limits, requests, memory = replica.limits, replica.requests, replica.memory
    known = requests[i].prompt_tokens + requests[i].age
    hits, free = 0, 0
    if not limits.shares:
        if requests[i].memory >= 0:
            left = left_of_run(replica.engine, memory.runs, requests[i].memory)
            hits = min(left, (known - 1) // limits.block_size)
        return hits, hits
    while (hits + 1) * limits.block_size < known:
        block = cached_block(replica, i, hits)
        if block < 0:
            break
        free += memory.blocks[block].users == 0
        hits += 1
    return hits, free


@compiled_here
def cached_block(replica: Replica, i: int, place: int) -> int:
    """The first block that holds the request's `place`-th block of tokens, -1 for none."""
    content = content_of(replica, i, place)
    if content >= 0:
        return int(replica.memory.shared[content])
    row = replica.requests[i].memory
    return int(replica.memory.remembered[row, place]) if row >= 0 else -1


@compiled_here
def content_of(replica: Replica, i: int, place: int) -> int:
    """What the request's `place`-th block holds where that is shared between prompts, else -1."""
    size, shared = replica.limits.block_size, replica.shared
    if (place + 1) * size > replica.requests[i].prompt_tokens:
        return -1
    which = shared.offsets[i] + place * size // shared.tokens
    if which >= shared.offsets[i + 1]:
        return -1
    per_content = shared.tokens // size
    return int(shared.contents[which] * per_content + place % per_content)


@compiled_here
def arrive(replica: Replica, i: int) -> None:
    """Request i joins an engine, which plans its next step for it if it had nothing to do."""
    limits, rules, engine = replica.limits, replica.rules, replica.engine
    requests = replica.requests
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
    if engine.plans_s == math.inf:
        if limits.lag == 0 and served.arrival_s > engine.starts_s > 0.0:
            engine.step += 1  # an empty one, in which the worker hears of the last end
        engine.plans_s = max(served.arrival_s, engine.starts_s)
        engine.starts_s = engine.plans_s
    if rules.reorders:
        _enter(replica, i)
        if rules.predicts:
            expect(replica, i)


@compiled_here
def _enter(replica: Replica, i: int) -> None:
    """Request i gets its row in the table that policies see.

    Its arrival is noted when the engine sees it, which is before the step that it plans next.
    """
    engine, queue, served = replica.engine, replica.queue, replica.requests[i]
    row = engine.live
    engine.live += 1
    served.row = row
    queue.request[row] = i
    request = queue.order.table[row]
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
    request.ahead = _ahead(replica, row)
    request.promoted = 0
    request.decoded_before = request.decoded_ranked = engine.facts.decoded
    request.prefilled_before = request.prefilled_ranked = engine.facts.prefilled
    request.decoded_meanwhile = request.prefilled_meanwhile = 0
    request.queued_work = 0.0
    request.prompt_tokens = served.prompt_tokens
    request.cached_tokens = 0
    request.computed_tokens = 0
    request.preemptions = request.memory_preemptions = 0
    request.adapter = 0
    request.pauses = 0
    request.look = 0
    request.last_step = engine.step


@compiled_here
def _ahead(replica: Replica, row: int) -> int:
    """Requests of the same class that wait when the one in a row, the last, arrives."""
    if not replica.limits.classes:
        return int(replica.engine.waiting - 1)
    table = replica.queue.order.table
    count = 0
    for k in range(row):
        count += int(table[k].state == WAITING and table[k].priority == table[row].priority)
    return count


@compiled_here
def expect(replica: Replica, i: int) -> None:
    """Request i, which has its row, wants a prediction; it ranks as the median until then."""
    engine, requests = replica.engine, replica.requests
    _write(replica.queue.order.table[requests[i].row], replica.recent.median, False)
    # Those that wait for their prediction are a list; the queue itself is in the table.
    requests[i].next = -1
    if engine.last >= 0:
        requests[engine.last].next = i
    else:
        engine.first = i
    engine.last = i


@compiled_here
def foretell(replica: Replica) -> None:
    """Predict as many as a step may, and now and then compute the median anew."""
    engine, requests, recent = replica.engine, replica.requests, replica.recent
    table = replica.queue.order.table
    made, read = 0, 0
    while engine.first >= 0 and made < PER_STEP and read < READ_PER_STEP:
        served = requests[engine.first]
        engine.first = served.next
        if engine.first < 0:
            engine.last = -1
        if served.row < 0:
            continue  # it has ended
        made += 1
        read += min(served.prompt_tokens, READ)
        if not served.predicted:
            continue
        prediction = recent.predictions[engine.predictions % RECENT]
        prediction[0] = served.score
        prediction[1] = served.expected
        prediction[2] = served.low
        prediction[3] = served.median
        prediction[4] = served.high
        engine.predictions += 1
        engine.since_median += 1
        if table[served.row].predicted != BY_PROBE:  # which knows more, and was first
            _write(table[served.row], prediction, True)
    known = min(engine.predictions, RECENT)
    if engine.since_median >= min(known, MEDIAN_EVERY) > 0:
        engine.since_median = 0
        for column in range(len(UNKNOWN)):
            recent.median[column] = np.median(recent.predictions[:known, column])
        score, expected, low, median, high = recent.median
        stand_in(table, engine.live, score, expected, low, median, high)


@compiled_here
def read_prompt(replica: Replica, i: int) -> None:
    """The first token of request i is known, and with it what the probe read in its prompt."""
    served = replica.requests[i]
    if served.row < 0 or np.isnan(served.probe_expected):
        return
    request = replica.queue.order.table[served.row]
    request.expected = request.initial = request.remaining = served.probe_expected
    request.low = served.probe_low
    request.median = served.probe_median
    request.high = served.probe_high
    request.predicted_age = 0
    request.predicted = BY_PROBE


@compiled_here
def _write(request: Any, prediction: NDArray[np.float64], predicted: bool) -> None:
    request.score = prediction[0]
    request.expected = prediction[1]
    request.low = prediction[2]
    request.median = prediction[3]
    request.high = prediction[4]
    request.initial = prediction[1]
    request.predicted_age = 0
    request.remaining = prediction[1]
    request.predicted = predicted


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
        note_done(request, engine.facts.decoded, engine.facts.prefilled)
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
