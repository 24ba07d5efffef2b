"""Several engines behind a router, from event to event."""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled, compiled_here
from lengthwise.policy.tenants import Shares
from lengthwise.simulate.borrowed import borrowed
from lengthwise.simulate.foretell import Recent, expect
from lengthwise.simulate.kv_blocks import Memory
from lengthwise.simulate.plan import Ranking
from lengthwise.simulate.routing import Routing, route, send
from lengthwise.simulate.state import Batch, Integers, Queue, Shared
from lengthwise.simulate.step import arrive, enter, run_step
from lengthwise.simulate.turns import Turns, close_turns, open_turn

# Why `advance` came back.
DONE: Final = 0  #: every request has been served
PAUSED: Final = 1  #: as many steps as it was asked for
MORE_ROWS: Final = 2  #: more requests are there than the tables hold
MORE_MEMORY: Final = 3  #: more requests have been preempted than can be remembered
STUCK: Final = 4  #: requests wait and none can run


@compiled
def advance(
    ranking: Ranking,
    limits: NDArray[np.void],
    terms: NDArray[np.float64],
    times: NDArray[np.void],
    engines: NDArray[np.void],
    requests: NDArray[np.void],
    turns: Turns,
    shared: Shared,
    queues: Queue,
    recents: Recent,
    batches: Batch,
    memories: Memory,
    token_times: NDArray[np.float32],
    token_offsets: Integers,
    log: NDArray[np.void],
    routing: Routing,
    arrived: int,
    steps: int,
) -> tuple[int, int, int]:
    """Simulate until something is needed from outside, or for a number of steps.

    Args:
        ranking: where the ranking begins, its parameter values, the guards and the rules.
        limits: array of one LIMITS record.
        terms: `StepCost.terms`.
        times: array of STEP_TIME, one for each engine, written.
        engines: array of ENGINE, written.
        requests: array of SERVED in the order of the trace, written.
        turns: who arrives when, written.
        shared: what prompts share.
        queues: of all engines, written.
        recents: of all engines, written.
        batches: of all engines, written.
        memories: of all engines, written.
        token_times: see `run_step`.
        token_offsets: see `run_step`.
        log: array of STEP for the steps from here on; of length 1 where none is wanted.
        routing: who sends requests to which engine, written.
        arrived: how many requests have arrived before.
        steps: how many steps to take.

    Returns:
        Why it came back, how many requests have arrived, and the steps taken.
    """
    rank, values, guards, rules = ranking
    own = (rank, borrowed(values), borrowed(guards), borrowed(rules))
    requests = borrowed(requests)
    terms = borrowed(terms)
    token_times, token_offsets = borrowed(token_times), borrowed(token_offsets)
    turns = Turns(
        borrowed(turns.order),
        borrowed(turns.known),
        borrowed(turns.next),
        borrowed(turns.delay_s),
        borrowed(turns.open),
        borrowed(turns.opened),
    )
    shared = Shared(borrowed(shared.contents), borrowed(shared.offsets), shared.tokens)
    taken = 0
    viewed = 0
    queue, recent, batch, memory = _of_engine(queues, recents, batches, memories, viewed)
    while taken < steps:
        r = 0
        for k in range(1, len(engines)):
            if engines[k].plans_s < engines[r].plans_s:
                r = k
        engine = engines[r]
        if arrived < turns.known[0] and requests[turns.order[arrived]].arrival_s <= engine.plans_s:
            i = turns.order[arrived]
            r = route(routing, engines, requests, arrived, i)
            engine = engines[r]
            if engine.live >= queues.table.shape[1]:
                return MORE_ROWS, arrived, taken
            requests[i].engine = r
            send(routing, requests, arrived, i, r)
            arrive(engine, requests, rules[0], i)
            if engine.plans_s == math.inf:
                if limits[0].lag == 0 and requests[i].arrival_s > engine.starts_s > 0.0:
                    engine.step += 1  # an empty one, in which the worker hears of the last end
                engine.plans_s = max(requests[i].arrival_s, engine.starts_s)
                engine.starts_s = engine.plans_s
            if rules[0].reorders:
                if viewed != r:
                    viewed = r
                    queue, recent, batch, memory = _of_engine(
                        queues, recents, batches, memories, viewed
                    )
                enter(limits[0], engine, requests[i], queue, i)
                if rules[0].predicts:
                    expect(engine, requests, queue, recent, i)
            open_turn(turns, i)
            arrived += 1
            continue
        if engine.plans_s == math.inf:
            return DONE, arrived, taken
        if engine.remembered + engine.running + engine.paused > memories.remembered.shape[1]:
            return MORE_MEMORY, arrived, taken
        if viewed != r:
            viewed = r
            queue, recent, batch, memory = _of_engine(queues, recents, batches, memories, viewed)
        step = log[taken] if len(log) > 1 else log[0]
        step.engine = r
        ran = run_step(
            own,
            limits[0],
            terms,
            times[r],
            engine,
            requests,
            shared,
            queue,
            recent,
            batch,
            memory,
            token_times,
            token_offsets,
            step,
        )
        if turns.opened[0] > 0:
            close_turns(turns, requests)
        if ran:
            taken += 1
        elif engine.running == 0 and engine.waiting + engine.paused > 0:
            return STUCK, arrived, taken
    return PAUSED, arrived, taken


@compiled_here
def _of_engine(
    queues: Queue, recents: Recent, batches: Batch, memories: Memory, r: int
) -> tuple[Queue, Recent, Batch, Memory]:
    """One engine's part of everything."""
    return (
        Queue(
            borrowed(queues.table[r]),
            borrowed(queues.groups[r]),
            borrowed(queues.ranks[r]),
            borrowed(queues.request[r]),
            borrowed(queues.admitted[r]),
            Shares(borrowed(queues.shares.tenants[r]), borrowed(queues.shares.least[r])),
        ),
        Recent(borrowed(recents.predictions[r]), borrowed(recents.median[r])),
        Batch(
            borrowed(batches.slots[r]),
            borrowed(batches.running[r]),
            borrowed(batches.paused[r]),
            borrowed(batches.free[r]),
        ),
        Memory(
            borrowed(memories.blocks[r]),
            borrowed(memories.shared[r]),
            borrowed(memories.of_slot[r]),
            borrowed(memories.remembered[r]),
            borrowed(memories.free_remembered[r]),
            borrowed(memories.runs[r]),
        ),
    )
