"""The pre-pass of a step: facts in, decision out. The vLLM adapter and the simulator both run it.

It goes in four calls, since most steps need none of it, and some facts are too dear to be gathered
of every request.

prepare  from a few numbers: may there be anything to decide? (`policy.due`)
begin    from the running requests: is there? Then everyone is ranked
look     who would come in, and who might make way: of these alone the engine is asked more
decide   the decision
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.cutoff import FADES, batch_cutoff
from lengthwise.policy.due import (
    adapts,
    looks_ahead,
    memory_may_run_out,
    needs_order,
    swaps_are_due,
)
from lengthwise.policy.memory import fitting
from lengthwise.policy.order import Order, first_in_order, victims_last
from lengthwise.policy.pausing import choose_active
from lengthwise.policy.peek import choose_peeks, end_looks, settle_looks
from lengthwise.policy.rollout import LOOKAHEAD
from lengthwise.policy.select import Rows, blocks_for, choose_swaps, outranked
from lengthwise.request import RequestTable

SPARE: Final = 16  #: waiting rows ordered beyond the free slots, in case some are blocked


@compiled
def begin(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    values: NDArray[np.float64],
) -> bool:
    """Take up the running requests of a step for which the pre-pass is due.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER.
        table: array of REQUEST; columns that change with every token are written.
        values: the policy's parameters; that which is "auto" is set by the present prices.

    Returns:
        Whether there is something to decide, for which everyone has to be ranked.
    """
    if adapts(rules, facts):
        facts.lost_share *= FADES
        values[rules.adapts] = batch_cutoff(table, runners, facts)
    if not needs_order(rules, facts) and (
        not memory_may_run_out(facts)
        or facts.free_blocks >= _wanted_blocks(facts, runners, np.arange(len(runners)))
    ):
        return False
    for runner in runners:
        request = table[runner.row]
        request.age = runner.age
        request.computed_tokens = runner.computed_tokens
    return True


@compiled
def look(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
) -> Rows:
    """Of whom the engine has to be asked more; everyone is ranked.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER. `may_make_way` is written: whether to ask if it may, and what it
            would give back; of a paused one, whether to ask if it may be freed.
        order: of all requests.

    Returns:
        The waiting rows that may come in, in order.
    """
    swaps, slots = swaps_are_due(rules, facts), facts.free_slots
    waiting = np.empty(0, np.int64)
    if needs_order(rules, facts):
        want = LOOKAHEAD * (slots + facts.running) if swaps else slots
        waiting = first_in_order(order, facts.rows, rules.blend, facts.admissions, want)
    if rules.pauses:
        short = memory_may_run_out(facts)
        for runner in runners:
            runner.may_make_way = short if runner.paused else swaps
        return waiting
    behind = outranked(order, runners, waiting)
    for place in range(len(runners)):
        within_bound = order.table[runners[place].row].preemptions < rules.max_preemptions
        runners[place].may_make_way = swaps and behind[place] and within_bound
    return waiting


@compiled
def decide(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    ready: NDArray[np.bool_],
) -> tuple[Rows, Rows, bool, Rows, Rows]:
    """Who makes way, who may come in, who is left out, and who keeps its memory longest.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER, with what the engine said of those that were asked about.
        order: of all requests.
        waiting: what `look` gave.
        ready: which of these the engine could admit now, given a slot and memory.

    Returns:
        Places of the victims among the runners. The only waiting rows that may come in, and whether
        there is such a limit: there is where somebody made way, or the victim could come back in
        the same step. Places of those that run, in the order in which they do: memory is taken
        from the last. Places of those that are paused.
    """
    if rules.pauses:
        return _decide_with_pauses(rules, facts, runners, order, waiting, ready)
    victims, front, limited = np.empty(0, np.int64), np.empty(0, np.int64), False
    if swaps_are_due(rules, facts):
        newcomers = _those_ready(waiting, ready)
        _keep_those_behind(rules, facts, runners, order, newcomers)
        victims, admitted = choose_swaps(rules, facts, runners, order, newcomers)
        limited = len(victims) > 0
        front = newcomers[:admitted]
    if not limited and looks_ahead(rules, facts):
        front = waiting[: facts.free_slots]
        # What lets nobody in must not hold back those behind.
        if len(front) > 0 and (facts.running > 0 or ready[0]):
            count = fitting(
                order.table,
                runners,
                front,
                rules.memory_growth,
                facts.free_blocks,
                facts.block_size,
            )
            limited = count < len(front)
            front = front[:count]
    kept, free_blocks = _those_kept(runners, victims), facts.free_blocks
    for place in victims:
        free_blocks += runners[place].freed_blocks
    _put_victims_last(facts, runners, order, kept, free_blocks)
    return victims, front, limited, kept, np.empty(0, np.int64)


@compiled
def _decide_with_pauses(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    ready: NDArray[np.bool_],
) -> tuple[Rows, Rows, bool, Rows, Rows]:
    """`decide` where those that make way are paused."""
    limited = False
    newcomers = _those_ready(waiting, ready)
    if looks_ahead(rules, facts) and len(waiting) > 0 and (len(runners) > 0 or ready[0]):
        size = facts.block_size
        growth, blocks = rules.memory_growth, facts.free_blocks
        first = waiting[: facts.free_slots]
        count = fitting(order.table, runners, first, growth, blocks, size)
        if count < len(first):
            limited = True
            newcomers = _those_ready(waiting[:count], ready)
    if not facts.may_swap or facts.admissions < facts.promised:
        newcomers = newcomers[:0]  # newcomers are held back, or did not come when they should
    swaps = swaps_are_due(rules, facts)
    active = end_looks(facts, runners, order) if rules.peeks else runners
    freed, kept, paused, front = choose_active(rules, facts, active, order, newcomers, swaps)
    settle_looks(facts, runners, active, order, kept, paused)
    if swaps:
        facts.looked_at = facts.arrivals
        if rules.peeks and len(freed) == 0:
            kept, paused, front = choose_peeks(
                rules, facts, runners, order, newcomers, kept, paused, front
            )
    # Where nobody is left out, the engine lets in whom it can.
    limited = limited or len(freed) > 0 or len(paused) > 0
    facts.promised = facts.admissions + len(front) if limited else 0
    _put_victims_last(facts, runners, order, kept, facts.free_blocks)
    return freed, front, limited, kept, paused


@compiled
def _keep_those_behind(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    order: Order,
    newcomers: Rows,
) -> None:
    """Nobody makes way who ranks before all that can get in."""
    most = facts.free_slots + rules.max_swaps
    behind = outranked(order, runners, newcomers[:most])
    for place in range(len(runners)):
        runners[place].may_make_way = runners[place].may_make_way and behind[place]


@compiled
def _those_ready(waiting: Rows, ready: NDArray[np.bool_]) -> Rows:
    rows = np.empty(len(waiting), np.int64)
    count = 0
    for place in range(len(waiting)):
        if ready[place]:
            rows[count] = waiting[place]
            count += 1
    return rows[:count]


@compiled
def _those_kept(runners: NDArray[np.void], victims: Rows) -> Rows:
    """Places of the runners that are no victims."""
    places = np.empty(len(runners) - len(victims), np.int64)
    count = 0
    for place in range(len(runners)):
        stays = True
        for victim in victims:
            stays = stays and victim != place
        if stays:
            places[count] = place
            count += 1
    return places


@compiled
def _put_victims_last(
    facts: Any, runners: NDArray[np.void], order: Order, kept: Rows, free_blocks: int
) -> None:
    """Where memory may run out in this step, whoever ranks last is the first to give its up."""
    most = len(kept) + blocks_for(facts.token_budget, facts.block_size)
    if free_blocks < most and free_blocks < _wanted_blocks(facts, runners, kept):
        victims_last(order, runners, kept)


@compiled
def _wanted_blocks(facts: Any, runners: NDArray[np.void], places: Rows) -> int:
    """Blocks for all that these running requests want to compute, at most."""
    wanted = 0
    for place in places:
        tokens = runners[place].wanted_tokens + facts.lookahead_tokens
        wanted += blocks_for(tokens, facts.block_size)
    return wanted
