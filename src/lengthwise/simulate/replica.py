"""One engine as the simulator's compiled code is handed it, and all that it is made of.

All that the simulation keeps is in records that compiled code reads and writes. Names in compiled
code: i is a request by its place in order of arrival, s a slot of an engine.

Everything that a step reads or writes is in one `Replica`, so that functions need not be handed its
parts one by one. What several engines have of a kind is kept in one array of each, the engine being
its first axis, and a replica is a view of one engine's part.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy.facts import FACTS, new_facts
from lengthwise.policy.guards import TENANT, Shares
from lengthwise.policy.length_law import RECENT, UNKNOWN
from lengthwise.policy.order import Order
from lengthwise.policy.ranking import Ranking
from lengthwise.request import new_table
from lengthwise.simulate.engine import EngineSettings
from lengthwise.simulate.kv_blocks import Memory

LIMITS: Final = np.dtype(
    [
        ("slots", np.int64),
        ("places", np.int64),  # of requests in the worker, paused ones among them
        ("token_budget", np.int64),
        ("block_size", np.int64),
        ("watermark_blocks", np.int64),
        ("long_prefill_tokens", np.int64),
        ("lag", np.int64),
        ("caching", np.bool_),
        ("shares", np.bool_),  # with caching: prompts share blocks
        ("classes", np.bool_),  # requests are of several priority classes
    ]
)

#: One request from its arrival to its end; times in s, NaN where it never happened.
SERVED: Final = np.dtype(
    [
        # From outside.
        ("arrival_s", np.float64),
        ("prompt_tokens", np.int64),
        ("output_tokens", np.int64),  # the truth: only the end of an answer reads it
        ("priority", np.int64),
        ("deadline_s", np.float64),  # to the first token, 0 for none
        ("tenant", np.int64),
        ("score", np.float64),
        ("expected", np.float64),
        ("low", np.float64),
        ("median", np.float64),
        ("high", np.float64),
        ("predicted", np.bool_),  # whether they are predictions, and no stand-in
        # Of what is said once the prompt has been computed; NaN for nothing.
        ("probe_expected", np.float64),
        ("probe_low", np.float64),
        ("probe_median", np.float64),
        ("probe_high", np.float64),
        # What happened.
        ("scheduled_s", np.float64),  # its first step
        ("first_token_s", np.float64),
        ("finish_s", np.float64),
        ("longest_gap_s", np.float64),  # between two of its tokens
        ("last_token_s", np.float64),
        ("cached_tokens", np.int64),  # of its prompt, found in the prefix cache
        ("pauses", np.int64),  # for another request
        ("looks", np.int64),  # at it, before its turn
        ("recomputed_tokens", np.int64),  # computed again after preemptions
        ("preemptions", np.int32),  # for another request
        ("memory_preemptions", np.int32),  # because blocks ran out
        ("overtaken", np.int32),
        ("engine", np.int32),
        # Where it stands.
        ("row", np.int64),  # in the table, -1 once it is released
        ("next", np.int64),  # in the list that `first` of its engine begins, -1 for none
        ("age", np.int64),  # tokens of its answer when it was preempted
        ("lost", np.int64),  # tokens that it had computed then
        ("memory", np.int64),  # its row among the remembered or its run, -1 for none
    ],
    align=True,
)

ENGINE: Final = np.dtype(
    [
        ("plans_s", np.float64),  # when the next step is planned; inf: nothing to do
        ("starts_s", np.float64),  # when it can start
        ("planned_s", np.float64),  # when the last step was planned
        ("facts", FACTS),  # of the step that was planned last
        ("outstanding", np.int64),  # requests not yet ended by the last step that was planned
        ("running", np.int64),
        ("paused", np.int64),
        ("waiting", np.int64),
        ("free_blocks", np.int64),
        ("live", np.int64),  # rows of the table in use
        ("head", np.int64),  # sequence number of the last request put back
        ("tail", np.int64),  # sequence number of the last request appended
        # A list of requests: the queue where it is served in its own order, else those that are
        # still to be predicted; -1 for none.
        ("first", np.int64),
        ("last", np.int64),
        ("predictions", np.int64),  # made so far
        ("since_median", np.int64),  # of them since the median of recent ones was computed
        ("arrivals", np.int64),
        ("step", np.int64),
        # Tokens of the last two steps; -1 where nothing ran.
        ("prefill", np.int64),
        ("decode", np.int64),
        ("prefill_before", np.int64),
        ("decode_before", np.int64),
        ("ranked_step", np.int64),  # the step in which the requests were last ranked
        ("admissions", np.int64),
        ("admitted", np.int64),  # of them since requests were last ranked
        ("remembered", np.int64),  # unfinished requests that have been preempted
        ("blank", np.int64),  # free blocks without content, where there are runs
        ("oldest_run", np.int64),  # number of the oldest run
        ("next_run", np.int64),  # number of the run that comes next
        ("ended_waiting", np.int64),  # preempted in this step, their last token on its way
        ("cutoff", np.float64),  # c where it is "auto"
    ],
    align=True,
)

SLOT: Final = np.dtype(
    [
        ("request", np.int64),
        ("age", np.int64),  # tokens of its answer
        ("in_flight", np.int64),  # of them, those that the scheduler has not been told of yet
        ("known", np.int64),  # tokens of prompt and answer
        ("computed", np.int64),  # of them computed
        ("named", np.int64),  # of them in blocks whose content is known, if full
        ("output", np.int64),  # tokens after which the answer ends
        ("chunk", np.bool_),  # its last step left some of its known tokens to compute
        ("scheduled", np.int64),  # tokens in this step
        ("blocks", np.int64),
        ("last_token_s", np.float64),
        ("gap_s", np.float64),  # the longest so far
    ],
    align=True,
)

STEP: Final = np.dtype(
    [
        ("engine", np.int32),
        ("running", np.int32),
        ("waiting", np.int32),
        ("free_blocks", np.int32),
        ("preempted", np.int32),
        ("prefill_tokens", np.int32),
        ("decode_tokens", np.int32),
        ("requests", np.int32),  # that ran in it
        ("paused", np.int64),
        ("kv_tokens", np.int64),  # tokens whose KV the step read
        ("attention_tokens", np.int64),  # for each prefilled token, those that it attends to
        ("start_s", np.float64),
        ("duration_s", np.float64),
    ],
    align=True,
)


def limits_of(
    settings: EngineSettings, blocks: int, shares: bool, classes: bool = False
) -> NDArray[np.void]:
    """An engine's limits, and what requests are like, as an array of one LIMITS record.

    Args:
        settings: the engine's.
        blocks: its KV blocks.
        shares: prompts share blocks.
        classes: requests are of several priority classes.
    """
    return np.array(
        [
            (
                settings.slots,
                settings.places,
                settings.token_budget,
                settings.block_size,
                settings.watermark_blocks(blocks),
                settings.long_prefill_tokens,
                settings.lag,
                settings.prefix_caching,
                settings.prefix_caching and shares,
                classes,
            )
        ],
        dtype=LIMITS,
    )


def new_engines(count: int, blocks: int, limits: NDArray[np.void]) -> NDArray[np.void]:
    """Idle engines with these limits, shape [count]; `limits`: of `limits_of`."""
    engines = np.zeros(count, ENGINE)
    shown = ("token_budget", "block_size", "watermark_blocks", "caching")
    engines["facts"] = new_facts(count, **{name: limits[name][0] for name in shown})
    engines["plans_s"] = np.inf
    engines["free_blocks"] = engines["blank"] = blocks
    engines["first"] = engines["last"] = -1
    engines["decode"] = engines["decode_before"] = -1
    return engines


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
