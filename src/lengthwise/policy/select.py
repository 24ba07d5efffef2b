"""Who runs in a step, given ranks, slots, token budget and KV blocks.

`StepOrder` freezes the order of a step. `choose_swaps` decides which running requests make way for
which waiting ones. Both work on the table of requests alone, so the vLLM adapter and the simulator
share them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.discipline import Discipline
from lengthwise.policy.order import first_waiting, interleave, rank_requests
from lengthwise.policy.rollout import swap_gain
from lengthwise.policy.step_time import StepTime
from lengthwise.request import RequestTable

Rows = NDArray[np.int64]

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
            admitted,
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
        chosen = first_waiting(table, count, self.groups, self.ranks, -1, want)
        if discipline.blend >= 1.0:
            return chosen
        classes = np.ascontiguousarray(table["priority"])
        queued = first_waiting(table, count, classes, np.zeros(len(table)), -1, want)
        return interleave(chosen, queued, discipline.blend, admissions)

    def after(self, table: RequestTable, count: int, row: int, want: int) -> Rows:
        """The best `want` waiting rows that come behind `row` in the policy's order."""
        return first_waiting(table, count, self.groups, self.ranks, row, want)

    def outranked(self, running: Rows, newcomers: Rows) -> NDArray[np.bool_]:
        """Which of the running rows rank truly behind any of the newcomers."""
        return _outranked_by_any(self.groups, self.ranks, running, newcomers)


@dataclass
class Engine:
    """What the engine has to give in this step.

    Attributes:
        free_slots: slots that no request holds.
        free_blocks: KV blocks free now, less those that running requests will take this step and
            less the admission watermark.
        token_budget: tokens left in the step after the running requests.
        block_size: tokens a KV block.
        caching: whether freed blocks stay reusable (prefix caching).
        requests: running and waiting requests.
        step_time: measured costs.
    """

    free_slots: int
    free_blocks: int
    token_budget: int
    block_size: int
    caching: bool
    requests: int
    step_time: StepTime


def blocks_for(tokens: float, block_size: int) -> int:
    """KV blocks that hold so many tokens."""
    return math.ceil(tokens / block_size)


def choose_swaps(
    discipline: Discipline,
    order: StepOrder,
    table: RequestTable,
    waiting: Rows,
    running: Rows,
    preemptible: NDArray[np.bool_],
    freed: Rows,
    engine: Engine,
) -> tuple[list[int], int]:
    """Which running requests to preempt, and how many waiting ones get in this step.

    Newcomers are taken strictly in order, since one that was passed over would be overtaken
    without a bound. Those that find a slot and memory are admitted as they are; behind them each
    may take the place of one running request, if its prompt fits in what the victim gives back.

    Args:
        discipline: the policy and its preemption rule.
        order: the step's order, already ranked.
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
    queue = list(waiting)
    admitted = 0
    slots, blocks, budget = engine.free_slots, engine.free_blocks, engine.token_budget
    while queue and slots > 0 and budget > 0 and _need(table, queue[0], engine) <= blocks:
        blocks -= _need(table, queue[0], engine)
        budget -= _uncached(table, queue[0])
        slots -= 1
        admitted += 1
        queue.pop(0)

    victims: list[int] = []
    held = running.copy()
    free = preemptible.copy()
    while queue and budget > 0 and len(victims) < discipline.max_swaps:
        newcomer = queue[0]
        place = _choose_victim(discipline, order, table, queue, held, free, freed + blocks, engine)
        if place is None:
            break
        victim = int(held[place])
        victims.append(victim)
        admitted += 1
        blocks += int(freed[place])
        blocks -= _need(table, newcomer, engine)
        budget += 1 - _uncached(table, newcomer)
        held[place] = newcomer
        free[place] = False
        queue.pop(0)
        rest = np.array(queue, dtype=np.int64)
        queue.insert(_place(table, order.groups, order.ranks, rest, victim), victim)
        if queue[0] == victim:
            break
    return victims, admitted


def _need(table: RequestTable, row: int, engine: Engine) -> int:
    """Blocks for the whole of a waiting request's known tokens and the first new one."""
    return blocks_for(table[row]["prompt_tokens"] + table[row]["age"] + 1, engine.block_size)


def _uncached(table: RequestTable, row: int) -> int:
    """Tokens that a waiting request has to compute when admitted."""
    request = table[row]
    return max(int(request["prompt_tokens"] + request["age"] - request["cached_tokens"]), 1)


def _choose_victim(
    discipline: Discipline,
    order: StepOrder,
    table: RequestTable,
    queue: list[int],
    held: Rows,
    free: NDArray[np.bool_],
    blocks: Rows,
    engine: Engine,
) -> int | None:
    """The place in `held` of the request that makes way for queue[0], if any should."""
    newcomer = queue[0]
    outranked = _outranked(table, order.groups, order.ranks, held, free, newcomer)
    contexts = table["computed_tokens"][held].astype(np.float64)
    fits = blocks >= _need(table, newcomer, engine)
    candidates = np.flatnonzero(outranked & fits)
    if len(candidates) == 0:
        return None
    if discipline.preemption == "greedy":
        worst = np.lexsort((order.ranks[held[candidates]], order.groups[held[candidates]]))[-1]
        return int(candidates[worst])

    step_s = engine.step_time.decode_s(len(held))
    prefill_s = engine.step_time.prefill_s_per_token
    remaining = table["remaining"][held]
    lost = contexts % engine.block_size if engine.caching else contexts
    promise = remaining * step_s - engine.requests * lost * prefill_s
    victim = int(candidates[np.argmax(promise[candidates])])
    rows = np.array(queue, dtype=np.int64)
    gain = swap_gain(
        remaining,
        table["remaining"][rows],
        victim,
        _place(table, order.groups, order.ranks, rows[1:], int(held[victim])),
        contexts[victim],
        float(_uncached(table, newcomer)),
        engine.requests,
        step_s,
        prefill_s,
        float(max(engine.free_blocks, 0)),
        engine.step_time.tokens_per_step,
        engine.block_size,
        engine.caching,
    )
    return victim if gain > 0.0 else None


@compiled
def _outranked(
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    held: Rows,
    free: NDArray[np.bool_],
    newcomer: int,
) -> NDArray[np.bool_]:
    """Which running requests rank truly behind the newcomer: a tie is no reason to preempt."""
    result = np.zeros(len(held), np.bool_)
    for place in range(len(held)):
        row = held[place]
        behind = groups[row] > groups[newcomer] or (
            groups[row] == groups[newcomer] and ranks[row] > ranks[newcomer]
        )
        result[place] = free[place] and behind
    return result


@compiled
def _outranked_by_any(
    groups: NDArray[np.int64], ranks: NDArray[np.float64], held: Rows, newcomers: Rows
) -> NDArray[np.bool_]:
    """Which running requests rank truly behind any of the newcomers."""
    result = np.zeros(len(held), np.bool_)
    for place in range(len(held)):
        row = held[place]
        for newcomer in newcomers:
            if groups[row] > groups[newcomer] or (
                groups[row] == groups[newcomer] and ranks[row] > ranks[newcomer]
            ):
                result[place] = True
                break
    return result


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
