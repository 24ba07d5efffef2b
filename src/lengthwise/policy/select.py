"""Which running requests make way for which waiting ones: preemption that pays for its recompute.

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

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.order import Order, place_in_order, ranks_behind

LOOKAHEAD: Final = 4  #: waiting requests rolled out, per slot

Rows = NDArray[np.int64]


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


@compiled
def blocks_for(tokens: float, block_size: int) -> int:
    """KV blocks that hold so many tokens."""
    return math.ceil(tokens / block_size)


@compiled
def outranked(order: Order, runners: NDArray[np.void], newcomers: Rows) -> NDArray[np.bool_]:
    """Which of the running requests rank truly behind any of the waiting rows, shape [runners]."""
    result = np.zeros(len(runners), np.bool_)
    if len(newcomers) == 0:
        return result
    best = newcomers[0]  # with a blend not always the first
    for newcomer in newcomers:
        if ranks_behind(order, best, newcomer):
            best = newcomer
    for place in range(len(runners)):
        result[place] = ranks_behind(order, runners[place].row, best)
    return result


class Room(NamedTuple):
    """What a step has for newcomers.

    Attributes:
        slots: that nobody has.
        blocks: of KV, free beyond those that are left free on purpose.
        tokens: that it may still compute.
        swaps: how many running requests may still make way.
    """

    slots: int
    blocks: int
    tokens: int
    swaps: int


@compiled
def left_by(rules: Any, facts: Any, runners: NDArray[np.void]) -> Room:
    """What running requests leave of a step, what they take in it at most set aside.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER.
    """
    tokens, blocks = facts.token_budget, facts.free_blocks - facts.watermark_blocks
    for runner in runners:
        tokens -= runner.wanted_tokens
        blocks -= growth(facts, runner)
    return Room(facts.free_slots, blocks, tokens, rules.max_swaps)


@compiled
def choose_swaps(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    room: Room,
) -> tuple[Rows, int]:
    """Which running requests to preempt, and how many waiting ones get in this step.

    Newcomers are taken strictly in order, since one that was passed over would be overtaken
    without a bound. Those that find a slot and memory are admitted as they are; behind them each
    may take the place of one running request, if its prompt fits in what the victim gives back.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER.
        order: of all requests.
        waiting: the first waiting rows in order that could be admitted.
        room: what the step has for them.

    Returns:
        Places of the victims among the runners, and the number of leading rows of `waiting` that
        get in.
    """
    table, queue = order.table, waiting.copy()
    admitted = 0
    slots, blocks, budget = room.slots, room.blocks, room.tokens
    free_blocks = blocks
    while len(queue) > 0 and slots > 0 and budget > 0:
        need = prompt_blocks(facts, table[queue[0]])
        if need > blocks:
            break
        blocks -= need
        budget -= uncached_tokens(table[queue[0]])
        slots -= 1
        admitted += 1
        queue = queue[1:]

    victims = np.empty(max(room.swaps, 0), np.int64)
    swaps, returned = 0, len(queue)  # where the first victim of this step is in the queue
    held = np.empty(len(runners), np.int64)
    for place in range(len(runners)):
        held[place] = runners[place].row
    while returned > 0 and budget > 0 and swaps < room.swaps:
        place = _choose_victim(rules, facts, runners, order, queue, held, blocks, free_blocks)
        if place < 0:
            break
        victim, newcomer = held[place], queue[0]
        victims[swaps] = place
        swaps += 1
        admitted += 1
        blocks += runners[place].freed_blocks - prompt_blocks(facts, table[newcomer])
        budget += 1 - uncached_tokens(table[newcomer])
        held[place] = newcomer
        # The victim takes its place in the queue. Where it is the next, nobody else gets in.
        returns = place_in_order(order, queue[1:], victim)
        if returns == 0:
            break
        returned = min(returned - 1, returns)
        for k in range(returns):
            queue[k] = queue[k + 1]
        queue[returns] = victim
    return victims[:swaps], admitted


@compiled
def promise(facts: Any, request: Any, computed: int, loaded: int) -> float:
    """What it brings at first sight to preempt a running request, s: the steps that it would still
    take, less the time until its KV is there again, which everybody waits for.

    Args:
        facts: a FACTS record.
        request: its `remaining` is up to date.
        computed: tokens that have to be computed again.
        loaded: tokens whose KV comes from host memory.
    """
    requests = facts.running + facts.waiting
    again_s = requests * computed * facts.prefill_s + requests * loaded * facts.load_s
    return float(request.remaining * facts.step_s - again_s)


@compiled
def growth(facts: Any, runner: Any) -> int:
    """Blocks that a running request takes in this step, at most."""
    after = runner.computed_tokens + runner.wanted_tokens + facts.lookahead_tokens
    return blocks_for(after, facts.block_size) - blocks_for(
        runner.computed_tokens, facts.block_size
    )


@compiled
def prompt_blocks(facts: Any, request: Any) -> int:
    """Blocks for the whole of a waiting request's known tokens and the first new one."""
    known = request.prompt_tokens + request.age
    return blocks_for(known + 1 + facts.lookahead_tokens, facts.block_size)


@compiled
def uncached_tokens(request: Any) -> int:
    """Tokens that a waiting request has to compute when admitted."""
    return max(int(request.prompt_tokens + request.age - request.cached_tokens), 1)


@compiled
def host_tokens(facts: Any, request: Any) -> int:
    """Computed tokens of a request that are offloaded to host memory: those of whole blocks."""
    if facts.host_blocks == 0:
        return 0
    tokens = request.computed_tokens
    if not facts.offloads_answers:
        tokens = min(tokens, request.prompt_tokens)
    return int(tokens - tokens % facts.block_size)


@compiled
def _choose_victim(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    queue: Rows,
    held: Rows,
    blocks: int,
    free_blocks: int,
) -> int:
    """The place of the request that makes way for queue[0]; -1 where none should.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER.
        order: of all requests.
        queue: the waiting rows in order, earlier victims of this step among them.
        held: which row has the slot of each runner now.
        blocks: that are free now, victims' blocks taken back and newcomers' given.
        free_blocks: that were free before the first swap.
    """
    table, newcomer = order.table, queue[0]
    need = prompt_blocks(facts, table[newcomer])
    remaining = np.empty(len(held))
    chosen, best = -1, -math.inf
    for place in range(len(held)):
        row = held[place]
        remaining[place] = table[row].remaining
        if row != runners[place].row or not runners[place].may_make_way:
            continue  # a newcomer of this step, or one that has to stay
        if runners[place].freed_blocks + blocks < need:
            continue
        if not ranks_behind(order, row, newcomer):
            continue
        if rules.greedy:
            if chosen < 0 or ranks_behind(order, row, held[chosen]):
                chosen = place
            continue
        context = table[row].computed_tokens
        lost = context % facts.block_size if facts.caching else context
        promised = promise(facts, table[row], lost, 0)
        if promised > best:
            chosen, best = place, promised
    if rules.greedy or chosen < 0:
        return chosen

    waiting = np.empty(len(queue))
    for place in range(len(queue)):
        waiting[place] = table[queue[place]].remaining
    victim = table[held[chosen]]
    swap = Swap(
        victim=chosen,
        returns=place_in_order(order, queue[1:], held[chosen]),
        context=float(victim.computed_tokens),
        offloaded=float(host_tokens(facts, victim)),
        newcomer_tokens=float(uncached_tokens(table[newcomer])),
        free_blocks=float(max(free_blocks, 0)),
    )
    return chosen if swap_gain(facts, remaining, waiting, swap) > 0.0 else -1
