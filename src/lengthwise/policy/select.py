"""Who runs in a step, given ranks, slots, token budget and KV blocks.

`StepOrder` freezes the order of a step. `choose_swaps` decides which running requests make way for
which waiting ones. Both work on the table of requests alone, so the vLLM adapter and the simulator
share them.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.discipline import Discipline
from lengthwise.policy.order import first_in_order, first_waiting, rank_requests
from lengthwise.policy.rollout import swap_gain
from lengthwise.request import RequestTable

Rows = NDArray[np.int64]

SPARE: Final = 16  #: waiting rows ordered beyond the free slots, in case some are blocked
SWAP_EVERY: Final = 8  #: steps between looks for swaps: few tokens, and most steps cost nothing

_NOBODY: Final = np.empty(0, dtype=np.int64)


class StepOrder:
    """The frozen order of one step over a table of requests.

    `rank` once a step, then `first` as often as needed.
    """

    def __init__(self) -> None:
        self.groups: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.ranks: NDArray[np.float64] = np.empty(0)

    def rank(
        self,
        discipline: Discipline,
        table: RequestTable,
        count: int,
        now: float,
        step: int,
        admitted: Rows = _NOBODY,
        everyone: bool = True,
        prefill_weight: float = 0.0,
    ) -> None:
        """Rank rows 0 … count-1; see `rank_requests` for the arguments."""
        if len(self.ranks) < len(table):
            self.groups = np.zeros(len(table), dtype=np.int64)
            self.ranks = np.zeros(len(table))
        rank_requests(
            discipline.policy.rank,
            discipline.parameters,
            discipline.guards,
            table,
            count,
            now,
            step,
            prefill_weight,
            admitted,
            everyone,
            self.groups,
            self.ranks,
        )

    def first(
        self,
        discipline: Discipline,
        table: RequestTable,
        count: int,
        want: int,
        admissions: int = 0,
    ) -> Rows:
        """The best `want` waiting rows; with a blend, merged with those first in the queue."""
        return first_in_order(
            table, count, self.groups, self.ranks, discipline.blend, admissions, want
        )

    def after(self, table: RequestTable, count: int, row: int, want: int) -> Rows:
        """The best `want` waiting rows that come behind `row` in the policy's order."""
        return first_waiting(table, count, self.groups, self.ranks, row, want)


class Engine(NamedTuple):
    """What the engine has to give in this step.

    Attributes:
        free_slots: slots that no request holds.
        free_blocks: KV blocks free now, less those that running requests will take this step and
            less the admission watermark.
        token_budget: tokens left in the step after the running requests.
        block_size: tokens a KV block.
        caching: whether freed blocks stay reusable (prefix caching).
        requests: running and waiting requests.
        step_s: seconds of a step in which all slots decode.
        prefill_s: seconds a prefilled token adds to a step.
        tokens_per_step: tokens whose KV is written in a step, on average.
    """

    free_slots: int
    free_blocks: int
    token_budget: int
    block_size: int
    caching: bool
    requests: int
    step_s: float
    prefill_s: float
    tokens_per_step: float


@compiled
def blocks_for(tokens: float, block_size: int) -> int:
    """KV blocks that hold so many tokens."""
    return math.ceil(tokens / block_size)


@compiled
def outranked_by_any(
    groups: NDArray[np.int64], ranks: NDArray[np.float64], running: Rows, newcomers: Rows
) -> NDArray[np.bool_]:
    """Which of the running rows rank truly behind any of the newcomers, shape of `running`."""
    result = np.zeros(len(running), np.bool_)
    for place in range(len(running)):
        for newcomer in newcomers:
            if _ranks_behind(groups, ranks, running[place], newcomer):
                result[place] = True
                break
    return result


@compiled
def choose_swaps(
    greedy: bool,
    max_swaps: int,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    table: RequestTable,
    waiting: Rows,
    running: Rows,
    preemptible: NDArray[np.bool_],
    freed: Rows,
    engine: Engine,
) -> tuple[Rows, int]:
    """Which running requests to preempt, and how many waiting ones get in this step.

    Newcomers are taken strictly in order, since one that was passed over would be overtaken
    without a bound. Those that find a slot and memory are admitted as they are; behind them each
    may take the place of one running request, if its prompt fits in what the victim gives back.

    Args:
        greedy: preempt whoever ranks last, whatever it costs; otherwise only where it pays.
        max_swaps: preemptions in one step.
        groups: of `rank_requests`.
        ranks: of `rank_requests`.
        table: array of REQUEST.
        waiting: the first waiting rows in order.
        running: rows of the running requests.
        preemptible: which of them may be preempted, shape of `running`.
        freed: KV blocks that preempting each of them would free, shape of `running`: those that
            it shares with another running request stay taken.
        engine: what is left to give.

    Returns:
        Rows of the victims, and the number of leading rows of `waiting` that get in.
    """
    queue = waiting.copy()
    admitted = 0
    slots, blocks, budget = engine.free_slots, engine.free_blocks, engine.token_budget
    while len(queue) > 0 and slots > 0 and budget > 0:
        need = _need(table, queue[0], engine.block_size)
        if need > blocks:
            break
        blocks -= need
        budget -= _uncached(table, queue[0])
        slots -= 1
        admitted += 1
        queue = queue[1:]

    victims = np.empty(max_swaps, np.int64)
    swaps = 0
    held = running.copy()
    free = preemptible.copy()
    while len(queue) > 0 and budget > 0 and swaps < max_swaps:
        place = _choose_victim(
            greedy, groups, ranks, table, queue, held, free, freed, blocks, engine
        )
        if place < 0:
            break
        victim, newcomer = held[place], queue[0]
        victims[swaps] = victim
        swaps += 1
        admitted += 1
        blocks += freed[place] - _need(table, newcomer, engine.block_size)
        budget += 1 - _uncached(table, newcomer)
        held[place] = newcomer
        free[place] = False
        # The victim takes its place in the queue. Where it is the next, nobody else gets in.
        returns = _place(table, groups, ranks, queue[1:], victim)
        if returns == 0:
            break
        for k in range(returns):
            queue[k] = queue[k + 1]
        queue[returns] = victim
    return victims[:swaps], admitted


@compiled
def _need(table: RequestTable, row: int, block_size: int) -> int:
    """Blocks for the whole of a waiting request's known tokens and the first new one."""
    return blocks_for(table[row].prompt_tokens + table[row].age + 1, block_size)


@compiled
def _uncached(table: RequestTable, row: int) -> int:
    """Tokens that a waiting request has to compute when admitted."""
    request = table[row]
    return max(int(request.prompt_tokens + request.age - request.cached_tokens), 1)


@compiled
def _choose_victim(
    greedy: bool,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    table: RequestTable,
    queue: Rows,
    held: Rows,
    free: NDArray[np.bool_],
    freed: Rows,
    blocks: int,
    engine: Engine,
) -> int:
    """The place in `held` of the request that makes way for queue[0]; -1 where none should."""
    newcomer = queue[0]
    need = _need(table, newcomer, engine.block_size)
    remaining = np.empty(len(held))
    chosen, best = -1, -math.inf
    for place in range(len(held)):
        row = held[place]
        remaining[place] = table[row].remaining
        if not free[place] or freed[place] + blocks < need:
            continue
        if not _ranks_behind(groups, ranks, row, newcomer):
            continue
        if greedy:
            if chosen < 0 or _ranks_behind(groups, ranks, row, held[chosen]):
                chosen = place
            continue
        context = table[row].computed_tokens
        lost = context % engine.block_size if engine.caching else context
        promise = remaining[place] * engine.step_s - engine.requests * lost * engine.prefill_s
        if promise > best:
            chosen, best = place, promise
    if greedy or chosen < 0:
        return chosen

    waiting = np.empty(len(queue))
    for place in range(len(queue)):
        waiting[place] = table[queue[place]].remaining
    gain = swap_gain(
        remaining,
        waiting,
        chosen,
        _place(table, groups, ranks, queue[1:], held[chosen]),
        float(table[held[chosen]].computed_tokens),
        float(_uncached(table, newcomer)),
        engine.requests,
        engine.step_s,
        engine.prefill_s,
        float(max(engine.free_blocks, 0)),
        engine.tokens_per_step,
        engine.block_size,
        engine.caching,
    )
    return chosen if gain > 0.0 else -1


@compiled
def _ranks_behind(
    groups: NDArray[np.int64], ranks: NDArray[np.float64], row: int, other: int
) -> bool:
    """Whether `row` ranks truly behind `other`: a tie is no reason to preempt."""
    return bool(
        groups[row] > groups[other] or (groups[row] == groups[other] and ranks[row] > ranks[other])
    )


@compiled
def _place(
    table: RequestTable,
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
