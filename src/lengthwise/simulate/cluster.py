"""Several engines behind a router, from event to event."""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.borrowed import borrowed
from lengthwise.policy.order import Order
from lengthwise.policy.ranking import Ranking
from lengthwise.policy.tenants import Shares
from lengthwise.simulate.arrival import arrive
from lengthwise.simulate.kv_blocks import Memory
from lengthwise.simulate.replica import Batch, Integers, Queue, Recent, Replica, Shared
from lengthwise.simulate.routing import Routing, route, send
from lengthwise.simulate.step import run_step
from lengthwise.simulate.turns import Turns, close_turns, open_turn

# Why `advance` came back.
DONE: Final = 0  #: every request has been served
PAUSED: Final = 1  #: as many steps as it was asked for
MORE_ROWS: Final = 2  #: more requests are there than the tables hold
MORE_MEMORY: Final = 3  #: more requests have been preempted than can be remembered
STUCK: Final = 4  #: requests wait and none can run


class Cluster(NamedTuple):
    """All engines of a simulation and all that happens to them.

    Attributes:
        ranking: how the discipline ranks.
        rules: array of one RULES record.
        limits: array of one LIMITS record, of each engine.
        terms: `StepCost.terms`.
        times: array of STEP_TIME, one for each engine.
        engines: array of ENGINE.
        requests: array of SERVED, in the order of the trace.
        turns: who arrives when.
        shared: what prompts share.
        queues: of all engines.
        recents: of all engines.
        batches: of all engines.
        memories: of all engines.
        token_times: s from arrival of every token; empty where none are kept.
        token_offsets: where each request's begin.
        routing: who sends requests to which engine.
    """

    ranking: Ranking
    rules: NDArray[np.void]
    limits: NDArray[np.void]
    terms: NDArray[np.float64]
    times: NDArray[np.void]
    engines: NDArray[np.void]
    requests: NDArray[np.void]
    turns: Turns
    shared: Shared
    queues: Queue
    recents: Recent
    batches: Batch
    memories: Memory
    token_times: NDArray[np.float32]
    token_offsets: Integers
    routing: Routing


@compiled
def advance(
    cluster: Cluster, log: NDArray[np.void], arrived: int, steps: int
) -> tuple[int, int, int]:
    """Simulate until something is needed from outside, or for a number of steps.

    Args:
        cluster: written.
        log: array of STEP for the steps from here on; of length 1 where none is wanted.
        arrived: how many requests have arrived before.
        steps: how many steps to take.

    Returns:
        Why it came back, how many requests have arrived, and the steps taken.
    """
    whole: Cluster = borrowed(cluster)
    engines, requests, turns = whole.engines, whole.requests, whole.turns
    rules, limits, routing = whole.rules[0], whole.limits[0], whole.routing
    rows, most = whole.queues.request.shape[1], whole.memories.remembered.shape[1]
    queues, batches, memories = whole.queues, whole.batches, whole.memories
    orders, shares = queues.order, queues.shares
    taken, viewed = 0, -1
    while taken < steps:
        r = 0
        for k in range(1, len(engines)):
            if engines[k].plans_s < engines[r].plans_s:
                r = k
        i = -1
        if arrived < turns.known[0]:
            i = turns.order[arrived]
            if requests[i].arrival_s > engines[r].plans_s:
                i = -1
        if i >= 0:
            r = route(routing, engines, requests, arrived, i)
            if engines[r].live >= rows:
                return MORE_ROWS, arrived, taken
            requests[i].engine = r
            send(routing, requests, arrived, i, r)
        elif engines[r].plans_s == math.inf:
            return DONE, arrived, taken
        elif engines[r].remembered + engines[r].running + engines[r].paused > most:
            return MORE_MEMORY, arrived, taken
        if viewed != r:
            viewed = r
            replica: Replica = borrowed(
                Replica(
                    limits,
                    rules,
                    whole.ranking,
                    whole.terms,
                    whole.times[r],
                    engines[r],
                    requests,
                    whole.shared,
                    Queue(
                        Order(orders.table[r], orders.groups[r], orders.ranks[r]),
                        queues.request[r],
                        queues.admitted[r],
                        Shares(shares.tenants[r], shares.least[r]),
                    ),
                    Recent(whole.recents.predictions[r], whole.recents.median[r]),
                    Batch(batches.slots[r], batches.running[r], batches.paused[r], batches.free[r]),
                    Memory(
                        memories.blocks[r],
                        memories.shared[r],
                        memories.of_slot[r],
                        memories.remembered[r],
                        memories.free_remembered[r],
                        memories.runs[r],
                    ),
                    whole.token_times,
                    whole.token_offsets,
                )
            )
        engine = replica.engine
        if i >= 0:
            arrive(replica, i)
            open_turn(turns, i)
            arrived += 1
            continue
        step = log[taken] if len(log) > 1 else log[0]
        step.engine = r
        ran = run_step(replica, step)
        if turns.opened[0] > 0:
            close_turns(turns, requests)
        if ran:
            taken += 1
        elif engine.running == 0 and engine.waiting + engine.paused > 0:
            return STUCK, arrived, taken
    return PAUSED, arrived, taken
