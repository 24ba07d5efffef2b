"""The KV memory that a set of requests will need at its worst.

With continuous batching each running request grows by a token a step and gives everything back
when it ends. How much they hold together t steps from now is a sum of independent terms, one for
each request: its blocks and t more tokens, if it still runs then. Mean and variance of that sum
follow from the predicted laws of the lengths. What is admitted must fit at its worst moment with
a chance of about 90 % (after Past-Future scheduling, arXiv 2507.10150, section 3, which samples).
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.facts import looks_ahead
from lengthwise.policy.length_law import cumulative_hazard, is_certain
from lengthwise.policy.order import Order
from lengthwise.request import RequestTable

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]

_INSTANTS: Final = 32  # at which the memory is looked at; with fewer requests, at each one's end
_SAFETY: Final = 1.2815515655446004  # standard deviations: the 90 % quantile of a normal law


@compiled
def let_in(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    ready: NDArray[np.bool_],
) -> int:
    """How many of the first waiting rows, one for each free slot, may come in by what memory is
    predicted to be needed; all where that is not asked for.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER.
        order: of all requests.
        waiting: rows in order.
        ready: which of them the engine could admit now.
    """
    first = waiting[: facts.free_slots]
    # What lets nobody in must not hold back those behind.
    if not looks_ahead(rules, facts) or len(first) == 0 or (len(runners) == 0 and not ready[0]):
        return len(first)
    growth, blocks, size = rules.memory_growth, facts.free_blocks, facts.block_size
    return int(fitting(order.table, runners, first, growth, blocks, size))


@compiled
def fitting(
    table: RequestTable,
    runners: NDArray[np.void],
    waiting: Rows,
    growth: float,
    free_blocks: int,
    block_size: int,
) -> int:
    """How many of the waiting rows, taken in order, keep the predicted peak within the memory.

    Args:
        table: array of REQUEST, its derived fields up to date.
        runners: array of RUNNER.
        waiting: the first waiting rows in order.
        growth: factor on the tokens to come: 1 takes the prediction as it is.
        free_blocks: KV blocks that nobody holds.
        block_size: tokens a KV block.

    Returns:
        A number of rows. Where nothing runs at least 1, whatever is predicted for it: a request
        that fits alone is never held back for ever.
    """
    instants = _instants(table, runners, waiting)
    mean, variance = np.zeros(len(instants)), np.zeros(len(instants))
    room = free_blocks * block_size
    most = 0  # what all would hold if none ended before the last
    for runner in runners:
        room += block_size * math.ceil(runner.computed_tokens / block_size)
        most += _held(table[runner.row], growth * instants[-1], block_size)
    for row in waiting:
        most += _held(table[row], growth * instants[-1], block_size)
    if most <= room:
        return len(waiting)
    for runner in runners:
        _add(table[runner.row], block_size, growth, instants, mean, variance)
    for taken in range(len(waiting)):
        _add(table[waiting[taken]], block_size, growth, instants, mean, variance)
        peak = 0.0
        for k in range(len(instants)):
            peak = max(peak, mean[k] + _SAFETY * math.sqrt(variance[k]))
        if peak > room:
            return max(taken, 1) if len(runners) == 0 else taken
    return len(waiting)


@compiled
def _instants(table: RequestTable, runners: NDArray[np.void], waiting: Rows) -> Floats:
    """Tokens from now at which requests are expected to end: there the memory in use peaks."""
    ends = np.empty(len(runners) + len(waiting))
    for place in range(len(runners)):
        ends[place] = table[runners[place].row].remaining
    for place in range(len(waiting)):
        ends[len(runners) + place] = table[waiting[place]].remaining
    ends.sort()
    if len(ends) <= _INSTANTS:
        return ends
    chosen = np.empty(_INSTANTS)
    for k in range(_INSTANTS):
        chosen[k] = ends[k * (len(ends) - 1) // (_INSTANTS - 1)]
    return chosen


@compiled
def _add(
    request: Any,
    block_size: int,
    growth: float,
    instants: Floats,
    mean: Floats,
    variance: Floats,
) -> None:
    """Add what a request is going to hold at each instant."""
    certain = is_certain(request.low, request.median, request.high)
    reached = _hazard(request, 0.0)
    for k in range(len(instants)):
        if certain:
            alive = 1.0 if instants[k] <= request.remaining else 0.0
        else:
            alive = math.exp(reached - _hazard(request, instants[k]))
        tokens = _held(request, growth * instants[k], block_size)
        mean[k] += alive * tokens
        variance[k] += alive * (1.0 - alive) * tokens * tokens


@compiled
def _held(request: Any, further: float, block_size: int) -> int:
    """Tokens of the blocks that a request holds when it has grown by `further` tokens."""
    known = request.prompt_tokens + request.age
    return int(block_size * math.ceil((known + further) / block_size))


@compiled
def _hazard(request: Any, further: float) -> float:
    """-log of the chance that an answer gets `further` tokens beyond its age."""
    return cumulative_hazard(
        request.expected, request.low, request.median, request.high, request.age + further
    )
