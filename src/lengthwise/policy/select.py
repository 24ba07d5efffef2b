"""Which running requests make way for which waiting ones."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.rollout import swap_gain
from lengthwise.request import RequestTable

Rows = NDArray[np.int64]


@compiled
def blocks_for(tokens: float, block_size: int) -> int:
    """KV blocks that hold so many tokens."""
    return math.ceil(tokens / block_size)


@compiled
def outranked(
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    runners: NDArray[np.void],
    newcomers: Rows,
) -> NDArray[np.bool_]:
    """Which of the running requests rank truly behind any of the waiting rows, shape [runners]."""
    result = np.zeros(len(runners), np.bool_)
    if len(newcomers) == 0:
        return result
    best = newcomers[0]  # with a blend not always the first
    for newcomer in newcomers:
        if ranks_behind(groups, ranks, best, newcomer):
            best = newcomer
    for place in range(len(runners)):
        result[place] = ranks_behind(groups, ranks, runners[place].row, best)
    return result


@compiled
def choose_swaps(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    waiting: Rows,
) -> tuple[Rows, int]:
    """Which running requests to preempt, and how many waiting ones get in this step.

    Newcomers are taken strictly in order, since one that was passed over would be overtaken
    without a bound. Those that find a slot and memory are admitted as they are; behind them each
    may take the place of one running request, if its prompt fits in what the victim gives back.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER.
        table: array of REQUEST.
        groups: of `rank_requests`.
        ranks: of `rank_requests`.
        waiting: the first waiting rows in order that could be admitted.

    Returns:
        Places of the victims among the runners, and the number of leading rows of `waiting` that
        get in.
    """
    queue = waiting.copy()
    admitted = 0
    slots, budget = facts.free_slots, facts.token_budget
    blocks = facts.free_blocks - facts.watermark_blocks
    for runner in runners:  # what those that run take in this step is set aside
        budget -= runner.wanted_tokens
        blocks -= growth(facts, runner)
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

    victims = np.empty(rules.max_swaps, np.int64)
    swaps = 0
    held = np.empty(len(runners), np.int64)
    free = np.empty(len(runners), np.bool_)
    for place in range(len(runners)):
        held[place] = runners[place].row
        free[place] = runners[place].may_make_way
    while len(queue) > 0 and budget > 0 and swaps < rules.max_swaps:
        place = _choose_victim(
            rules, facts, runners, table, groups, ranks, queue, held, free, blocks, free_blocks
        )
        if place < 0:
            break
        victim, newcomer = held[place], queue[0]
        victims[swaps] = place
        swaps += 1
        admitted += 1
        blocks += runners[place].freed_blocks - prompt_blocks(facts, table[newcomer])
        budget += 1 - uncached_tokens(table[newcomer])
        held[place] = newcomer
        free[place] = False
        # The victim takes its place in the queue. Where it is the next, nobody else gets in.
        returns = place_in_order(groups, ranks, queue[1:], victim)
        if returns == 0:
            break
        for k in range(returns):
            queue[k] = queue[k + 1]
        queue[returns] = victim
    return victims[:swaps], admitted


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
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    queue: Rows,
    held: Rows,
    free: NDArray[np.bool_],
    blocks: int,
    free_blocks: int,
) -> int:
    """The place in `held` of the request that makes way for queue[0]; -1 where none should."""
    newcomer = queue[0]
    need = prompt_blocks(facts, table[newcomer])
    requests = facts.running + facts.waiting
    remaining = np.empty(len(held))
    chosen, best = -1, -math.inf
    for place in range(len(held)):
        row = held[place]
        remaining[place] = table[row].remaining
        if not free[place] or runners[place].freed_blocks + blocks < need:
            continue
        if not ranks_behind(groups, ranks, row, newcomer):
            continue
        if rules.greedy:
            if chosen < 0 or ranks_behind(groups, ranks, row, held[chosen]):
                chosen = place
            continue
        context = table[row].computed_tokens
        lost = context % facts.block_size if facts.caching else context
        promise = remaining[place] * facts.step_s - requests * lost * facts.prefill_s
        if promise > best:
            chosen, best = place, promise
    if rules.greedy or chosen < 0:
        return chosen

    waiting = np.empty(len(queue))
    for place in range(len(queue)):
        waiting[place] = table[queue[place]].remaining
    gain = swap_gain(
        remaining,
        waiting,
        chosen,
        place_in_order(groups, ranks, queue[1:], held[chosen]),
        float(table[held[chosen]].computed_tokens),
        float(uncached_tokens(table[newcomer])),
        requests,
        facts.step_s,
        facts.prefill_s,
        float(max(free_blocks, 0)),
        facts.tokens_per_step,
        facts.block_size,
        facts.caching,
        float(facts.host_blocks),
        float(host_tokens(facts, table[held[chosen]])),
        facts.load_s,
    )
    return chosen if gain > 0.0 else -1


@compiled
def ranks_behind(
    groups: NDArray[np.int64], ranks: NDArray[np.float64], row: int, other: int
) -> bool:
    """Whether `row` ranks truly behind `other`: a tie is no reason to preempt."""
    return bool(
        groups[row] > groups[other] or (groups[row] == groups[other] and ranks[row] > ranks[other])
    )


@compiled
def place_in_order(
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    rows: Rows,
    row: int,
) -> int:
    """Where `row`, put back ahead of its equals, goes among rows that are in order."""
    for place in range(len(rows)):
        other = rows[place]
        if groups[other] > groups[row] or (
            groups[other] == groups[row] and ranks[other] >= ranks[row]
        ):
            return place
    return len(rows)
