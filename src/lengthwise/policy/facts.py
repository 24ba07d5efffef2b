"""What the pre-pass of a step is told: the engine's limits and state, and its running requests.

The vLLM adapter and the simulator gather the same facts; all else that decides is in `prepass`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

#: One engine before a step.
FACTS: Final = np.dtype(
    [
        # Its limits.
        ("token_budget", np.int64),  # tokens that a step may compute
        ("block_size", np.int64),  # tokens a KV block
        ("watermark_blocks", np.int64),  # that admission leaves free
        ("lookahead_tokens", np.int64),  # for which KV is allocated beyond those of the step
        ("caching", np.bool_),  # freed blocks stay reusable
        ("max_adapters", np.int64),  # LoRA adapters that a step may hold; 0 for no limit
        ("host_blocks", np.int64),  # KV blocks that host memory holds; 0: nothing is offloaded
        ("offloads_answers", np.bool_),  # and not only prompts
        # Its state.
        ("now_s", np.float64),
        ("step", np.int64),  # its number
        ("rows", np.int64),  # of the table, in use
        ("running", np.int64),  # requests
        ("paused", np.int64),  # requests
        ("waiting", np.int64),  # requests
        ("free_slots", np.int64),
        ("free_places", np.int64),  # in the worker, which paused requests take as well
        ("free_blocks", np.int64),
        ("may_swap", np.bool_),  # it can preempt and admit in this step
        ("arrivals", np.int64),  # of requests so far
        ("looked_at", np.int64),  # of them, when swaps were last looked for
        ("admissions", np.int64),  # made so far
        ("promised", np.int64),  # admissions that there should be after the step before
        ("looking", np.int64),  # of those that run, how many are only looked at
        ("decoded", np.int64),  # tokens computed so far, of answers
        ("prefilled", np.int64),  # and of prompts
        # What it has seen of preemptions; see `policy.cutoff`.
        ("lost_share", np.float64),  # of preempted tokens, computed again
        ("thrown_out", np.float64),  # of requests that left the batch, for want of memory
        # Its prices, as measured.
        ("step_s", np.float64),  # of a step in which all running requests decode
        ("prefill_s", np.float64),  # that a prefilled token adds to a step
        ("tokens_per_step", np.float64),  # whose KV is written, on average
        ("token_work", np.float64),  # output tokens that cost as much as a prefilled one
        ("prefill_weight", np.float64),  # the same; 0 where ranks count output tokens alone
        ("load_s", np.float64),  # for which a token's KV is loaded from host memory
    ],
    align=True,
)

#: One running or paused request.
RUNNER: Final = np.dtype(
    [
        ("row", np.int64),  # in the table
        ("age", np.int64),  # output tokens, as far as the scheduler knows
        ("computed_tokens", np.int64),
        ("wanted_tokens", np.int64),  # to be computed in this step, speculative ones among them
        ("paused", np.bool_),  # it was left out of the step before
        ("prefilling", np.bool_),  # in the middle of its prefill
        ("may_make_way", np.bool_),  # it can be preempted, or left out, for another
        ("freed_blocks", np.int64),  # by preempting it: those that no other request shares
    ],
    align=True,
)


def new_facts(
    count: int, *, token_budget: int, block_size: int, caching: bool = True, **more: float
) -> NDArray[np.void]:
    """Facts of engines at which nothing has happened yet, shape [count].

    Args:
        count: how many engines.
        token_budget: of each, as are the others: see FACTS.
        block_size: likewise.
        caching: likewise.
        more: other limits, by their names in FACTS; those that are not given are 0.
    """
    facts = np.zeros(count, FACTS)
    limits = {"token_budget": token_budget, "block_size": block_size, "caching": caching, **more}
    for name, value in limits.items():
        facts[name] = value
    return facts
