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
from lengthwise.policy.pausing import choose_active
from lengthwise.policy.peek import choose_peeks, end_looks, settle_looks
from lengthwise.policy.rollout import LOOKAHEAD
from lengthwise.policy.select import Rows, blocks_for, choose_swaps, outranked
from lengthwise.policy.step_time import batch_s, prefill_weight
from lengthwise.request import RequestTable

SPARE: Final = 16  #: waiting rows ordered beyond the free slots, in case some are blocked
SWAP_EVERY: Final = 8  #: steps between looks for swaps: few tokens, and most steps cost nothing


@compiled
def may_decide(
    step: int,
    newcomers: bool,
    looks_ahead: bool,
    looks_end: bool,
    free_for_paused: bool,
    free_blocks: int,
    most_blocks: int,
) -> bool:
    """Whether a step may have anything to decide, from the least that says so.

    In most steps it has not. Whoever knows these numbers need not gather the facts then; the same
    without compiled code, which costs more to call than this: `may_decide.py_func`.

    Args:
        step: its number.
        newcomers: requests have come since swaps were last looked for, and nobody need wait for
            the next look: see RULES.pauses.
        looks_ahead: see RULES.memory_growth.
        looks_end: requests are being looked at, see `policy.peek`.
        free_for_paused: there are paused requests, and free slots.
        free_blocks: now.
        most_blocks: that all running requests may want in a step, together.
    """
    return (
        step % SWAP_EVERY == 0
        or newcomers
        or looks_ahead
        or looks_end
        or free_for_paused
        or free_blocks < most_blocks
    )


@compiled
def swaps_are_due(rules: Any, facts: Any) -> bool:
    """Whether running requests may make way for others in this step."""
    others = (facts.waiting > 0 and facts.may_swap) or (rules.pauses and facts.paused > 0)
    due = facts.step % SWAP_EVERY == 0
    # A pause costs nothing, so that a newcomer need not wait for the next look.
    due = due or (rules.pauses and facts.arrivals > facts.looked_at)
    due = due or (rules.peeks and facts.looking > 0)
    return bool(rules.preempts and others and due and facts.running > 0)


@compiled
def takes_up(rules: Any, facts: Any) -> bool:
    """Whether there are paused requests and slots for them."""
    return bool(rules.pauses and facts.paused > 0 and facts.free_slots > 0)


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
    paused: int,
    waiting: int,
    free_slots: int,
    free_places: int,
    free_blocks: int,
    may_swap: bool,
    arrivals: int,
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
        paused: see FACTS.
        waiting: see FACTS.
        free_slots: see FACTS.
        free_places: see FACTS.
        free_blocks: see FACTS.
        may_swap: see FACTS.
        arrivals: see FACTS.
        admissions: see FACTS.

    Returns:
        Whether there may be anything to decide: if not, the running requests need not be looked at.
    """
    facts.now_s, facts.step, facts.rows, facts.admissions = now_s, step, rows, admissions
    facts.running, facts.paused, facts.waiting = running, paused, waiting
    facts.free_slots, facts.free_places = max(free_slots, 0), max(free_places, 0)
    facts.free_blocks = free_blocks
    facts.may_swap, facts.arrivals = may_swap, arrivals
    facts.step_s, facts.prefill_s = batch_s(times, running), times.prefill_s
    facts.tokens_per_step = times.mean_tokens
    facts.token_work = prefill_weight(times, max(running, 1))
    facts.prefill_weight = facts.token_work if rules.service_time else 0.0
    if not may_decide(
        step,
        rules.pauses and arrivals > facts.looked_at,
        rules.memory_growth > 0.0,
        rules.peeks and facts.looking > 0,
        paused > 0 and free_slots > 0,
        free_blocks,
        _most_blocks(facts),
    ):
        return False
    return _adapts(rules, facts) or _memory_may_run_out(facts) or _orders(rules, facts)


@compiled
def _orders(rules: Any, facts: Any) -> bool:
    """Whether something is to be decided for which everyone is ranked."""
    due = swaps_are_due(rules, facts) or takes_up(rules, facts)
    return bool(due or looks_ahead(rules, facts))


@compiled
def _adapts(rules: Any, facts: Any) -> bool:
    return bool(rules.adapts >= 0 and facts.running > 0 and facts.step % SWAP_EVERY == 0)


@compiled
def _memory_may_run_out(facts: Any) -> bool:
    """A first look, at no running request."""
    return bool(facts.free_blocks < _most_blocks(facts))


@compiled
def _most_blocks(facts: Any) -> int:
    """Blocks that a step may take: one for each request that runs, and those of its tokens."""
    return int(facts.running + blocks_for(facts.token_budget, facts.block_size))


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
    if not _orders(rules, facts) and (
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
            would give back; of a paused one, whether to ask if it may be freed.
        table: array of REQUEST.
        groups: of `rank_requests`.
        ranks: of `rank_requests`.

    Returns:
        The waiting rows that may come in, in order.
    """
    swaps, slots = swaps_are_due(rules, facts), facts.free_slots
    waiting = np.empty(0, np.int64)
    if _orders(rules, facts):
        want = LOOKAHEAD * (slots + facts.running) if swaps else slots
        waiting = first_in_order(
            table, facts.rows, groups, ranks, rules.blend, facts.admissions, want
        )
    if rules.pauses:
        short = _memory_may_run_out(facts)
        for runner in runners:
            runner.may_make_way = short if runner.paused else swaps
        return waiting
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
) -> tuple[Rows, Rows, bool, Rows, Rows]:
    """Who makes way, who may come in, who is left out, and who keeps its memory longest.

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
        the same step. Places of those that run, in the order in which they do: memory is taken
        from the last. Places of those that are paused.
    """
    if rules.pauses:
        return _decide_with_pauses(rules, facts, runners, table, groups, ranks, waiting, ready)
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
    return victims, front, limited, kept, np.empty(0, np.int64)


@compiled
def _decide_with_pauses(
    rules: Any,
    facts: Any,
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
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
        count = fitting(table, runners, first, growth, blocks, size)
        if count < len(first):
            limited = True
            newcomers = _those_ready(waiting[:count], ready)
    if not facts.may_swap or facts.admissions < facts.promised:
        newcomers = newcomers[:0]  # newcomers are held back, or did not come when they should
    swaps = swaps_are_due(rules, facts)
    active = end_looks(facts, runners, table) if rules.peeks else runners
    freed, kept, paused, front = choose_active(
        rules, facts, active, table, groups, ranks, newcomers, swaps
    )
    settle_looks(facts, runners, active, table, kept, paused)
    if swaps:
        facts.looked_at = facts.arrivals
        if rules.peeks and len(freed) == 0:
            kept, paused, front = choose_peeks(
                rules, facts, runners, table, groups, ranks, newcomers, kept, paused, front
            )
    # Where nobody is left out, the engine lets in whom it can.
    limited = limited or len(freed) > 0 or len(paused) > 0
    facts.promised = facts.admissions + len(front) if limited else 0
    if facts.free_blocks < len(kept) + blocks_for(facts.token_budget, facts.block_size) and (
        facts.free_blocks < _wanted_blocks(facts, runners, kept)
    ):
        victims_last(table, groups, ranks, runners, kept)
    return freed, front, limited, kept, paused


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
