"""The pre-pass of a step: facts in, decision out. The vLLM adapter and the simulator both run it.

It goes in four calls, since most steps need none of it, and some facts are too dear to be gathered
of every request.

prepare  from a few numbers: may there be anything to decide?
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
from lengthwise.policy.memory import fitting
from lengthwise.policy.order import first_in_order, victims_last
from lengthwise.policy.rollout import LOOKAHEAD
from lengthwise.policy.select import Rows, blocks_for, choose_swaps, outranked
from lengthwise.policy.step_time import batch_s, prefill_weight
from lengthwise.request import RequestTable

SPARE: Final = 16  #: waiting rows ordered beyond the free slots, in case some are blocked
SWAP_EVERY: Final = 8  #: steps between looks for swaps: few tokens, and most steps cost nothing


@compiled
def swaps_are_due(rules: Any, facts: Any) -> bool:
    """Whether running requests may make way for waiting ones in this step."""
    busy = facts.running > 0 and facts.waiting > 0
    return bool(rules.preempts and facts.may_swap and busy and facts.step % SWAP_EVERY == 0)


@compiled
def looks_ahead(rules: Any, facts: Any) -> bool:
    """Whether admission in this step depends on how memory is predicted to grow."""
    return bool(rules.memory_growth > 0.0 and facts.free_slots > 0 and facts.waiting > 0)


@compiled
def prepare(
    rules: Any,
    facts: Any,
    times: Any,
    now_s: float,
    step: int,
    rows: int,
    running: int,
    waiting: int,
    free_slots: int,
    free_blocks: int,
    may_swap: bool,
    admissions: int,
) -> bool:
    """Write the facts of the step that comes next.

    Args:
        rules: a RULES record.
        facts: a FACTS record, written.
        times: a STEP_TIME record.
        now_s: see FACTS, as are the others.
        step: see FACTS.
        rows: see FACTS.
        running: see FACTS.
        waiting: see FACTS.
        free_slots: see FACTS.
        free_blocks: see FACTS.
        may_swap: see FACTS.
        admissions: see FACTS.

    Returns:
        Whether there may be anything to decide: if not, the running requests need not be looked at.
    """
    facts.now_s, facts.step, facts.rows, facts.admissions = now_s, step, rows, admissions
    facts.running, facts.waiting = running, waiting
    facts.free_slots, facts.free_blocks = max(free_slots, 0), free_blocks
    facts.may_swap = may_swap
    facts.step_s, facts.prefill_s = batch_s(times, running), times.prefill_s
    facts.tokens_per_step = times.mean_tokens
    facts.prefill_weight = prefill_weight(times, max(running, 1)) if rules.service_time else 0.0
    if _adapts(rules, facts) or _memory_may_run_out(facts):
        return True
    return swaps_are_due(rules, facts) or looks_ahead(rules, facts)


@compiled
def _adapts(rules: Any, facts: Any) -> bool:
    return bool(rules.adapts >= 0 and facts.running > 0 and facts.step % SWAP_EVERY == 0)


@compiled
def _memory_may_run_out(facts: Any) -> bool:
    """A first look, at no running request."""
    most = facts.running + blocks_for(facts.token_budget, facts.block_size)
    return bool(facts.free_blocks < most)


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
        rules: see `look`, as are the next three.
        facts: see `look`.
        runners: see `look`.
        table: see `look`; columns that change with every token are written.
        values: the policy's parameters; that which is "auto" is set by the present prices.

    Returns:
        Whether there is something to decide, for which everyone has to be ranked.
    """
    if _adapts(rules, facts):
        facts.lost_share *= FADES
        values[rules.adapts] = batch_cutoff(table, runners, facts)
    if not (swaps_are_due(rules, facts) or looks_ahead(rules, facts)) and (
        not _memory_may_run_out(facts)
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
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
) -> Rows:
    """Of whom the engine has to be asked more; everyone is ranked.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER. `may_make_way` is written: whether to ask if it may, and what it
            would give back.
        table: array of REQUEST.
        groups: of `rank_requests`.
        ranks: of `rank_requests`.

    Returns:
        The waiting rows that may come in, in order.
    """
    swaps, slots = swaps_are_due(rules, facts), facts.free_slots
    waiting = np.empty(0, np.int64)
    if swaps or looks_ahead(rules, facts):
        want = LOOKAHEAD * (slots + facts.running) if swaps else slots
        waiting = first_in_order(
            table, facts.rows, groups, ranks, rules.blend, facts.admissions, want
        )
    behind = outranked(groups, ranks, runners, waiting)
    for place in range(len(runners)):
        within_bound = table[runners[place].row].preemptions < rules.max_preemptions
        runners[place].may_make_way = swaps and behind[place] and within_bound
    return waiting


@compiled
def decide(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    waiting: Rows,
    ready: NDArray[np.bool_],
) -> tuple[Rows, Rows, bool, Rows]:
    """Who makes way, who may come in, and who keeps its memory longest.

    Args:
        rules: see `look`, as are the next five.
        facts: see `look`.
        runners: see `look`; with what the engine said of those that were asked about.
        table: see `look`.
        groups: see `look`.
        ranks: see `look`.
        waiting: what `look` gave.
        ready: which of these the engine could admit now, given a slot and memory.

    Returns:
        Places of the victims among the runners. The only waiting rows that may come in, and whether
        there is such a limit: there is where somebody made way, or the victim could come back in
        the same step. Places of the other runners, in the order in which they run: memory is taken
        from the last.
    """
    victims, front, limited = np.empty(0, np.int64), np.empty(0, np.int64), False
    if swaps_are_due(rules, facts):
        newcomers = _those_ready(waiting, ready)
        _keep_those_behind(rules, facts, runners, groups, ranks, newcomers)
        victims, admitted = choose_swaps(rules, facts, runners, table, groups, ranks, newcomers)
        limited = len(victims) > 0
        front = newcomers[:admitted]
    if not limited and looks_ahead(rules, facts):
        front = waiting[: facts.free_slots]
        # What lets nobody in must not hold back those behind.
        if len(front) > 0 and (facts.running > 0 or ready[0]):
            count = fitting(
                table,
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
    if free_blocks < len(kept) + blocks_for(facts.token_budget, facts.block_size) and (
        free_blocks < _wanted_blocks(facts, runners, kept)
    ):
        victims_last(table, groups, ranks, runners, kept)
    return victims, front, limited, kept


@compiled
def _keep_those_behind(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    newcomers: Rows,
) -> None:
    """Nobody makes way who ranks before all that can get in."""
    most = facts.free_slots + rules.max_swaps
    behind = outranked(groups, ranks, runners, newcomers[:most])
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
def _wanted_blocks(facts: Any, runners: NDArray[np.void], places: Rows) -> int:
    """Blocks for all that these running requests want to compute, at most."""
    wanted = 0
    for place in places:
        tokens = runners[place].wanted_tokens + facts.lookahead_tokens
        wanted += blocks_for(tokens, facts.block_size)
    return wanted
