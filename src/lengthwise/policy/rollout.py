"""Preemption that pays for its recompute.

Preempting frees a slot at once, but the victim's KV may be gone when it comes back, and computing
it again delays everybody. Whether a swap is worth it depends on the queue, on how much shorter the
newcomer is and on how much of the victim's KV will still be in the prefix cache. The rule prices
all three: it list-schedules the running requests and the head of the queue twice, with and without
the swap, and swaps if and only if

    (sum of completions without - sum of completions with) · step_s  >  N · recompute_s + newcomer_s

where N is the number of requests that the recompute delays, recompute_s the time to compute the
victim's *uncached* context and newcomer_s the newcomer's own prefill.

Where whole blocks are offloaded to host memory, what the cache has lost is loaded from there: that
takes the victim alone load_s, which is added on the right, and only the rest is computed again.

The freed blocks go to the tail of an LRU list. They survive as long as the blocks ahead of them
outlast the allocations made until the victim is back, which the same rollout tells.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled

LOOKAHEAD: Final = 4  #: waiting requests rolled out, per slot


@compiled
def list_schedule(
    slots: NDArray[np.float64], jobs: NDArray[np.float64], starts: NDArray[np.float64]
) -> float:
    """Serve jobs in order, each by the slot that is free first.

    Args:
        slots: step at which each slot becomes free; a scratch heap, overwritten.
        jobs: steps that each job needs.
        starts: output, the step at which each job starts.

    Returns:
        The sum of the completion steps of the jobs.
    """
    for place in range(len(slots) // 2 - 1, -1, -1):
        _sift_down(slots, place, slots[place])
    total = 0.0
    for j in range(len(jobs)):
        starts[j] = slots[0]
        completion = slots[0] + jobs[j]
        total += completion
        _sift_down(slots, 0, completion)
    return total


@compiled
def _sift_down(heap: NDArray[np.float64], hole: int, value: float) -> None:
    """Put a value into a min-heap at a hole, below which all is in order."""
    size = len(heap)
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and heap[child + 1] < heap[child]:
            child += 1
        if heap[child] >= value:
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = value


@compiled
def surviving_tokens(
    context: float, resume_step: float, free_blocks: float, tokens_per_step: float, block_size: int
) -> float:
    """Tokens of a preempted context that the prefix cache will still hold when it resumes.

    Only full blocks are reusable. They are freed last block first, so the tail is lost first and
    what is left is a usable prefix.

    Args:
        context: tokens computed for the victim.
        resume_step: steps until it runs again.
        free_blocks: blocks ahead of the victim's in the LRU list.
        tokens_per_step: tokens for which the engine allocates KV in a step.
        block_size: tokens a block.
    """
    full_blocks = context // block_size
    reused = resume_step * tokens_per_step / block_size
    lost = min(max(reused - free_blocks, 0.0), full_blocks)
    return float((full_blocks - np.ceil(lost)) * block_size)


@compiled
def steps_saved(
    running: NDArray[np.float64], waiting: NDArray[np.float64], victim: int, returns: int
) -> tuple[float, float]:
    """What a swap saves, and when the victim runs again, both in steps.

    Args:
        running: predicted remaining steps of each running request, shape [slots].
        waiting: predicted steps of the waiting requests in order; the first is the newcomer.
        victim: place in `running` of the one that makes way.
        returns: place among waiting[1:] that it takes in the queue.

    Returns:
        By how much the sum of all completion times falls, and the step at which the victim resumes.
    """
    queue, slots = len(waiting), len(running)
    starts = np.empty(queue)
    jobs = np.empty(queue)
    busy = np.empty(slots)
    without = 0.0
    for place in range(slots):
        busy[place] = running[place]
        without += running[place]
    without += list_schedule(busy, waiting, starts)

    with_swap = 0.0
    for place in range(slots):
        busy[place] = waiting[0] if place == victim else running[place]
        with_swap += busy[place]
    for place in range(queue):
        if place < returns:
            jobs[place] = waiting[place + 1]
        else:
            jobs[place] = running[victim] if place == returns else waiting[place]
    with_swap += list_schedule(busy, jobs, starts)
    return without - with_swap, starts[returns]


class Swap(NamedTuple):
    """A waiting request in a running one's place.

    Attributes:
        victim: place of the one that makes way among those that run.
        returns: place that it takes in the queue, behind the newcomer.
        context: tokens computed for it.
        offloaded: of them, those that host memory holds.
        newcomer_tokens: prompt tokens that the newcomer must compute.
        free_blocks: KV blocks free before the swap.
    """

    victim: int
    returns: int
    context: float
    offloaded: float
    newcomer_tokens: float
    free_blocks: float


@compiled
def swap_gain(
    facts: Any, running: NDArray[np.float64], waiting: NDArray[np.float64], swap: Swap
) -> float:
    """Seconds of total completion time that a swap pays beyond its cost.

    Args:
        facts: a FACTS record: N is its running and waiting requests, prices are as measured.
        running: see `steps_saved`.
        waiting: see `steps_saved`.
        swap: who makes way, and what that throws away.

    Returns:
        Seconds; the swap pays if and only if it is positive.
    """
    saved, resumes = steps_saved(running, waiting, swap.victim, swap.returns)
    tokens_per_step, size = facts.tokens_per_step, facts.block_size
    cached = 0.0
    if facts.caching:
        cached = surviving_tokens(swap.context, resumes, swap.free_blocks, tokens_per_step, size)
    loaded = 0.0
    if facts.host_blocks > 0:
        # Least recently used goes first there, too: all that is computed until then is stored.
        room = float(facts.host_blocks)
        held = surviving_tokens(swap.offloaded, resumes, room, tokens_per_step, size)
        loaded = max(held - cached, 0.0)
    recompute_s = (swap.context - cached - loaded) * facts.prefill_s
    newcomer_s = swap.newcomer_tokens * facts.prefill_s
    delayed = facts.running + facts.waiting
    gain = saved * facts.step_s - delayed * recompute_s - newcomer_s
    return float(gain - loaded * facts.load_s)
