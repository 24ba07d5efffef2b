"""One engine as the simulator's compiled code is handed it, and all that it is made of.

Everything that a step reads or writes is in one `Replica`, so that functions need not be handed its
parts one by one. What several engines have of a kind is kept in one array of each, the engine being
its first axis, and a replica is a view of one engine's part.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy.order import Order
from lengthwise.policy.ranking import Ranking
from lengthwise.policy.stand_in import RECENT, UNKNOWN
from lengthwise.policy.tenants import TENANT, Shares
from lengthwise.request import new_table
from lengthwise.simulate.kv_blocks import Memory
from lengthwise.simulate.state import SLOT

_ROWS: Final = 256  #: of a queue, to start with

Integers = NDArray[np.int64]


class Batch(NamedTuple):
    """Who runs on an engine."""

    slots: NDArray[np.void]  # [places], SLOT
    running: Integers  # [places], those of requests that run, in the engine's order
    paused: Integers  # [places], those of paused requests
    free: Integers  # [places], a stack of free ones


class Queue(NamedTuple):
    """Every request on an engine, as policies see it."""

    order: Order  # of [rows] requests
    request: Integers  # [rows], whose row it is
    admitted: Integers  # [slots, 2], arrival_index and priority of those since the last ranking
    shares: Shares  # what the tenants were served


class Recent(NamedTuple):
    """The last predictions."""

    predictions: NDArray[np.float64]  # [RECENT, 5], a ring
    median: NDArray[np.float64]  # [5], what stands in for a prediction


class Shared(NamedTuple):
    """What prompts share; see `Trace`."""

    contents: Integers  # of all prompts, one after another
    offsets: Integers  # [n + 1]
    tokens: int  # of each content, 0 where nothing is shared


class Replica(NamedTuple):
    """One engine with all that is on it.

    Attributes:
        limits: a LIMITS record.
        rules: a RULES record, of the discipline.
        ranking: how the discipline ranks.
        terms: `StepCost.terms`.
        times: a STEP_TIME record: what steps are measured to cost.
        engine: an ENGINE record: where it stands.
        requests: array of SERVED, those of all engines.
        shared: what prompts share.
        queue: the requests on this engine, as policies see them.
        recent: the last predictions.
        batch: who runs.
        memory: the KV blocks.
        token_times: s from arrival of every token of every request; empty where none are kept.
        token_offsets: where each request's begin.
    """

    limits: Any
    rules: Any
    ranking: Ranking
    terms: NDArray[np.float64]
    times: Any
    engine: Any
    requests: Any
    shared: Shared
    queue: Queue
    recent: Recent
    batch: Batch
    memory: Memory
    token_times: NDArray[np.float32]
    token_offsets: Integers


def new_batches(engines: int, places: int) -> Batch:
    """Empty batches of several engines, with so many places in each worker."""
    return Batch(
        slots=np.zeros((engines, places), SLOT),
        running=np.zeros((engines, places), np.int64),
        paused=np.zeros((engines, places), np.int64),
        free=np.tile(np.arange(places)[::-1], (engines, 1)),
    )


def new_queues(engines: int, slots: int, tenants: int) -> Queue:
    """Empty queues of several engines, with some room to start with."""
    return Queue(
        order=Order(
            table=np.stack([new_table(_ROWS) for _ in range(engines)]),
            groups=np.zeros((engines, _ROWS), np.int64),
            ranks=np.zeros((engines, _ROWS)),
        ),
        request=np.zeros((engines, _ROWS), np.int64),
        admitted=np.zeros((engines, slots, 2), np.int64),
        shares=Shares(np.zeros((engines, tenants), TENANT), np.zeros((engines, 1), np.int64)),
    )


def new_recent(engines: int) -> Recent:
    """Nothing predicted yet, on several engines."""
    return Recent(
        predictions=np.zeros((engines, RECENT, len(UNKNOWN))),
        median=np.tile(np.array(UNKNOWN), (engines, 1)),
    )


def with_more_rows(queue: Queue) -> Queue:
    """The queues with twice the room."""
    order = Order(*(_doubled(each) for each in queue.order))
    return queue._replace(order=order, request=_doubled(queue.request))


def with_more_memory(memory: Memory) -> Memory:
    """The memories with twice the room for what they remember of preempted requests."""
    engines, count, _ = memory.remembered.shape
    new = np.tile(np.arange(2 * count - 1, count - 1, -1), (engines, 1))
    return memory._replace(
        remembered=_doubled(memory.remembered),
        # A stack whose free part comes first: the new rows go below it.
        free_remembered=np.concatenate([new, memory.free_remembered], axis=1),
    )


def _doubled(array: NDArray[Any]) -> NDArray[Any]:
    larger = np.zeros((array.shape[0], 2 * array.shape[1], *array.shape[2:]), array.dtype)
    larger[:, : array.shape[1]] = array
    return larger
