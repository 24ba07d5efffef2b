"""The pre-pass of a step in the simulator: facts gathered, the decision carried out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.policy import prepass
from lengthwise.policy.cutoff import observed
from lengthwise.policy.facts import RUNNER
from lengthwise.policy.order import first_in_order
from lengthwise.policy.pointer import rank
from lengthwise.policy.tenants import take_leads
from lengthwise.request import LOOKED, LOOKING
from lengthwise.simulate.kv_blocks import Memory
from lengthwise.simulate.prefix_cache import find_cached
from lengthwise.simulate.slots import note_admission, preempt, put_back
from lengthwise.simulate.state import Batch, Integers, Queue, Shared

Ranking = Any  #: where the ranking begins, its parameter values, the guards and the rules


@compiled_here
def plan_step(
    ranking: Ranking,
    limits: Any,
    times: Any,
    engine: Any,
    requests: Any,
    shared: Shared,
    queue: Queue,
    batch: Batch,
    memory: Memory,
) -> tuple[Integers, bool, int]:
    """Preempt or pause where that pays, and put memory victims last; see `run_step`.

    Returns:
        The only rows that may come in, whether there is such a limit, and how many were preempted.
    """
    values, rules, facts = ranking[1], ranking[3][0], engine.facts
    nobody, limited = np.empty(0, np.int64), False
    due = prepass.prepare(
        rules,
        facts,
        times,
        engine.plans_s,
        engine.step,
        engine.live,
        engine.running,
        engine.paused,
        engine.waiting,
        limits.slots - engine.running,
        limits.places - engine.running - engine.paused,
        engine.free_blocks,
        True,
        engine.arrivals,
        engine.admissions,
    )
    if rules.adapts >= 0:
        values[rules.adapts] = engine.cutoff  # of this engine
    if not due:
        return nobody, limited, 0
    runners = _runners(engine, requests, batch)
    decides = prepass.begin(rules, facts, runners, queue.table, values)
    if rules.adapts >= 0:
        engine.cutoff = values[rules.adapts]
    if not decides:
        return nobody, limited, 0
    rank_once(ranking, limits, engine, requests, shared, queue, memory, True)
    waiting = prepass.look(rules, facts, runners, queue.table, queue.groups, queue.ranks)
    for k in range(len(runners)):
        if runners[k].may_make_way:
            s = _slot_of(engine, batch, k)
            slot = batch.slots[s]
            runners[k].may_make_way = not slot.chunk and 0 < runners[k].age < slot.output
            runners[k].freed_blocks = _blocks_freed(limits, slot, s, memory)
    ready = np.ones(len(waiting), np.bool_)
    seen = queue.table["look"][: engine.live].copy()
    victims, front, limited, kept, paused = prepass.decide(
        rules, facts, runners, queue.table, queue.groups, queue.ranks, waiting, ready
    )
    if rules.pauses:
        _pause(rules, limits, engine, requests, queue, batch, memory, victims, kept, paused, seen)
        return front, limited, len(victims)
    # All stay in the batch until the order is known.
    order = batch.running[kept]
    for victim in batch.running[victims]:
        i = batch.slots[victim].request
        queue.table[requests[i].row].preemptions += 1
        requests[i].preemptions += 1
        place = 0
        while batch.running[place] != victim:
            place += 1
        preempt(rules, limits, engine, requests, queue, batch, memory, place)
    batch.running[: engine.running] = order
    return front, limited, len(victims)


@compiled_here
def _slot_of(engine: Any, batch: Batch, place: int) -> int:
    """The slot at a place among the runners, of which those that run come first."""
    if place < engine.running:
        return int(batch.running[place])
    return int(batch.paused[place - engine.running])


@compiled_here
def _pause(
    rules: Any,
    limits: Any,
    engine: Any,
    requests: Any,
    queue: Queue,
    batch: Batch,
    memory: Memory,
    freed: Integers,
    kept: Integers,
    paused: Integers,
    seen: Integers,
) -> None:
    """Those at some places among the runners are freed, run, or are left out; `seen`: `look`."""
    slots = np.empty(engine.running + engine.paused, np.int64)
    for place in range(len(slots)):
        slots[place] = _slot_of(engine, batch, place)
    for place in kept:
        row = requests[batch.slots[slots[place]].request].row
        request = queue.table[row]
        if (seen[row] == LOOKING or seen[row] == LOOKED) and request.look == 0:
            # Its turn has come: it counts as admitted from now on.
            note_admission(engine, queue, request)
    for place in paused:
        requests[batch.slots[slots[place]].request].pauses += place < engine.running
    for place in freed:
        requests[batch.slots[slots[place]].request].memory_preemptions += 1
        engine.facts.thrown_out = observed(engine.facts.thrown_out, 1.0)
        put_back(rules, limits, engine, requests, queue, batch, memory, slots[place])
        engine.paused -= 1
    for k in range(len(kept)):
        batch.running[k] = slots[kept[k]]
    for k in range(len(paused)):
        batch.paused[k] = slots[paused[k]]
    engine.running, engine.paused = len(kept), len(paused)


@compiled_here
def _runners(engine: Any, requests: Any, batch: Batch) -> NDArray[np.void]:
    runners = np.zeros(engine.running + engine.paused, RUNNER)
    for k in range(len(runners)):
        slot = batch.slots[_slot_of(engine, batch, k)]
        runners[k].row = requests[slot.request].row
        runners[k].age = slot.age - slot.in_flight
        runners[k].computed_tokens = slot.computed
        runners[k].wanted_tokens = slot.known - slot.computed
        runners[k].paused = k >= engine.running
        runners[k].prefilling = slot.chunk
    return runners


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
    rules, facts = ranking[3][0], engine.facts
    if ranking[2][0].max_tenant_lead < math.inf:
        take_leads(queue.shares, queue.table, engine.live)
    if rules.reads_prefix_cache and limits.caching:
        # A look-up is too dear for all: those who would be next.
        _rank(ranking, facts, queue, np.empty((0, 2), np.int64), everyone)
        for row in first_rows(rules, engine, queue, facts.free_slots + prepass.SPARE):
            hits, _ = find_cached(limits, engine, requests, shared, memory, queue.request[row])
            queue.table[row].cached_tokens = hits * limits.block_size
    admitted = queue.admitted[: engine.admitted].copy()
    engine.admitted = 0
    _rank(ranking, facts, queue, admitted, everyone)


@compiled_here
def first_rows(rules: Any, engine: Any, queue: Queue, want: int) -> Integers:
    """The best `want` waiting rows."""
    return first_in_order(
        queue.table, engine.live, queue.groups, queue.ranks, rules.blend, engine.admissions, want
    )


@compiled_here
def _rank(ranking: Ranking, facts: Any, queue: Queue, admitted: Integers, everyone: bool) -> None:
    address, values, guards, _ = ranking
    rank(
        address,
        values,
        guards,
        queue.table,
        facts.rows,
        facts.now_s,
        facts.step,
        facts.prefill_weight,
        facts.token_work,
        facts.decoded,
        facts.prefilled,
        facts.admissions,
        admitted,
        everyone,
        queue.groups,
        queue.ranks,
    )


@compiled_here
def _blocks_freed(limits: Any, slot: Any, s: int, memory: Memory) -> int:
    """Blocks that preempting a slot's request frees: those that no other request shares."""
    if not limits.shares:
        return int(slot.blocks)
    freed = 0
    for place in range(slot.blocks):
        freed += memory.blocks[memory.of_slot[s, place]].users == 1
    return freed
