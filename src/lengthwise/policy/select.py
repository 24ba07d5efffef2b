"""Which running requests make way for which waiting ones."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.order import Order, place_in_order, ranks_behind
from lengthwise.policy.rollout import Swap, swap_gain

Rows = NDArray[np.int64]


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
