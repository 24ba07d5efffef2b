"""The pre-pass of a step in the simulator: facts gathered, the decision carried out."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.policy import prepass
from lengthwise.policy.borrowed import borrowed
from lengthwise.policy.facts import RUNNER, EngineState, prepare
from lengthwise.policy.guards import take_leads
from lengthwise.policy.order import Order, first_in_order
from lengthwise.policy.ranking import rank
from lengthwise.request import LOOKED, LOOKING
from lengthwise.simulate.replica import Batch, Integers, Replica
from lengthwise.simulate.slots import (
    find_cached,
    note_admission,
    note_memory_preemption,
    preempt,
    put_back,
)


@compiled_here
def plan_step(replica: Replica) -> tuple[Integers, bool, int]:
    """Preempt or pause where that pays, and put memory victims last.

    Returns:
        The only rows that may come in, whether there is such a limit, and how many were preempted.
    """
    rules, engine, batch, order = replica.rules, replica.engine, replica.batch, replica.queue.order
    facts, values = engine.facts, replica.ranking.values
    nobody, limited = np.empty(0, np.int64), False
    due = prepare(rules, facts, replica.times, _state(replica))
    if rules.adapts >= 0:
        values[rules.adapts] = engine.cutoff  # of this engine
    if not due:
        return nobody, limited, 0
    runners = _runners(replica)
    decides = prepass.begin(rules, facts, runners, order.table, values)
    if rules.adapts >= 0:
        engine.cutoff = values[rules.adapts]
    if not decides:
        return nobody, limited, 0
    rank_once(replica, True)
    ranked: Order = borrowed(order)
    waiting = prepass.look(rules, facts, runners, ranked)
    for k in range(len(runners)):
        if runners[k].may_make_way:
            s = _slot_of(engine, batch, k)
            slot = batch.slots[s]
            runners[k].may_make_way = not slot.chunk and 0 < runners[k].age < slot.output
            runners[k].freed_blocks = _blocks_freed(replica, s)
    ready = np.ones(len(waiting), np.bool_)
    seen = order.table["look"][: engine.live].copy()
    victims, front, limited, kept, paused = prepass.decide(
        rules, facts, runners, ranked, waiting, ready
    )
    if rules.pauses:
        _pause(replica, victims, kept, paused, seen)
    else:
        _preempt(replica, victims, kept)
    return front, limited, len(victims)


@compiled_here
def _state(replica: Replica) -> EngineState:
    """What the engine says of itself before a step."""
    engine, limits = replica.engine, replica.limits
    return EngineState(
        now_s=engine.plans_s,
        step=engine.step,
        rows=engine.live,
        running=engine.running,
        paused=engine.paused,
        waiting=engine.waiting,
        free_slots=limits.slots - engine.running,
        free_places=limits.places - engine.running - engine.paused,
        free_blocks=engine.free_blocks,
        may_swap=True,
        arrivals=engine.arrivals,
        admissions=engine.admissions,
    )


@compiled_here
def _slot_of(engine: Any, batch: Batch, place: int) -> int:
    """The slot at a place among the runners, of which those that run come first."""
    if place < engine.running:
        return int(batch.running[place])
    return int(batch.paused[place - engine.running])


@compiled_here
def _preempt(replica: Replica, victims: Integers, kept: Integers) -> None:
    """Preempt those at some places; those that are kept run on, in their order."""
    engine, batch, requests = replica.engine, replica.batch, replica.requests
    # All stay in the batch until the order is known.
    order = batch.running[kept]
    for victim in batch.running[victims]:
        i = batch.slots[victim].request
        replica.queue.order.table[requests[i].row].preemptions += 1
        requests[i].preemptions += 1
        place = 0
        while batch.running[place] != victim:
            place += 1
        preempt(replica, place)
    batch.running[: engine.running] = order


@compiled_here
def _pause(
    replica: Replica, freed: Integers, kept: Integers, paused: Integers, seen: Integers
) -> None:
    """Those at some places among the runners are freed, run, or are left out; `seen`: `look`."""
    engine, batch, requests = replica.engine, replica.batch, replica.requests
    table = replica.queue.order.table
    slots = np.empty(engine.running + engine.paused, np.int64)
    for place in range(len(slots)):
        slots[place] = _slot_of(engine, batch, place)
    for place in kept:
        row = requests[batch.slots[slots[place]].request].row
        request = table[row]
        if (seen[row] == LOOKING or seen[row] == LOOKED) and request.look == 0:
            # Its turn has come: it counts as admitted from now on.
            note_admission(replica, request)
    for place in paused:
        requests[batch.slots[slots[place]].request].pauses += place < engine.running
    for place in freed:
        note_memory_preemption(replica, batch.slots[slots[place]].request)
        put_back(replica, slots[place])
        engine.paused -= 1
    for k in range(len(kept)):
        batch.running[k] = slots[kept[k]]
    for k in range(len(paused)):
        batch.paused[k] = slots[paused[k]]
    engine.running, engine.paused = len(kept), len(paused)


@compiled_here
def _runners(replica: Replica) -> NDArray[np.void]:
    """The running and then the paused requests, as the pre-pass is told of them."""
    engine, batch = replica.engine, replica.batch
    runners = np.zeros(engine.running + engine.paused, RUNNER)
    for k in range(len(runners)):
        slot = batch.slots[_slot_of(engine, batch, k)]
        runners[k].row = replica.requests[slot.request].row
        runners[k].age = slot.age - slot.in_flight
        runners[k].computed_tokens = slot.computed
        runners[k].wanted_tokens = slot.known - slot.computed
        runners[k].paused = k >= engine.running
        runners[k].prefilling = slot.chunk
    return runners


@compiled_here
def rank_once(replica: Replica, everyone: bool) -> None:
    """Rank all requests, or only those that wait, once a step."""
    engine, queue, ranking = replica.engine, replica.queue, replica.ranking
    if engine.ranked_step == engine.step:
        return
    engine.ranked_step = engine.step
    facts, order = engine.facts, queue.order
    if ranking.guards[0].max_tenant_lead < math.inf:
        take_leads(queue.shares, order.table, engine.live)
    if replica.rules.reads_prefix_cache and replica.limits.caching:
        # A look-up is too dear for all: those who would be next.
        rank(ranking, facts, order, np.empty((0, 2), np.int64), everyone)
        for row in first_rows(replica, facts.free_slots + prepass.SPARE):
            hits, _ = find_cached(replica, queue.request[row])
            order.table[row].cached_tokens = hits * replica.limits.block_size
    admitted = queue.admitted[: engine.admitted].copy()
    engine.admitted = 0
    rank(ranking, facts, order, admitted, everyone)


@compiled_here
def first_rows(replica: Replica, want: int) -> Integers:
    """The best `want` waiting rows."""
    engine = replica.engine
    order, blend = replica.queue.order, replica.rules.blend
    return first_in_order(order, engine.live, blend, engine.admissions, want)


@compiled_here
def _blocks_freed(replica: Replica, s: int) -> int:
    """Blocks that preempting a slot's request frees: those that no other request shares."""
    memory, slot = replica.memory, replica.batch.slots[s]
    if not replica.limits.shares:
        return int(slot.blocks)
    freed = 0
    for place in range(slot.blocks):
        freed += memory.blocks[memory.of_slot[s, place]].users == 1
    return freed
