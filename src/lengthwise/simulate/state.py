"""All that the simulation keeps, as records that compiled code reads and writes.

Names in compiled code: i is a request by its place in order of arrival, s a slot of an engine.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy.facts import FACTS, new_facts
from lengthwise.simulate.engine_settings import EngineSettings

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
