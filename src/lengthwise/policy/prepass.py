"""The pre-pass of a step: facts in, decision out. The vLLM adapter and the simulator both run it.

It goes in four calls, since most steps need none of it, and some facts are too dear to be gathered
of every request.

prepare  from a few numbers: may there be anything to decide? (`policy.facts`)
begin    from the running requests: is there? Then everyone is ranked
look     who would come in, and who might make way: of these alone the engine is asked more
decide   the decision

Each has a twin for code that is not compiled, `begin_one` and so on, to which every record comes as
an array of one: numba looks at that in less time than at a record, of which it takes microseconds.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.borrowed import borrowed
from lengthwise.policy.discipline import Discipline
from lengthwise.policy.facts import (
    RUNNER,
    EngineState,
    adapts,
    memory_may_run_out,
    needs_order,
    new_facts,
    prepare_one,
    swaps_are_due,
)
from lengthwise.policy.guards import new_shares, note_done, take_leads
from lengthwise.policy.memory import let_in
from lengthwise.policy.offloading import loads_are_due
from lengthwise.policy.order import Order, first_in_order, victims_last
from lengthwise.policy.pausing import decide_with_pauses
from lengthwise.policy.prices import FADES, StepTime, batch_cutoff, batch_s
from lengthwise.policy.ranking import rank_one
from lengthwise.policy.select import (
    LOOKAHEAD,
    Rows,
    blocks_for,
    choose_swaps,
    host_tokens,
    left_by,
    outranked,
    promise,
)
from lengthwise.request import RUNNING, WAITING, RequestTable, new_table

NO_ADMISSIONS: Final = np.empty((0, 2), dtype=np.int64)  #: no request was admitted
OFTEN: Final = 5  #: times that a request may lose its memory because that is cheap
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
            would give back; of a paused one, whether to ask if it may be freed. So is `in_flight`:
            whether to ask what a running one that may be paused would give back.
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
        loads = swaps and loads_are_due(rules, facts, order, waiting)
        short = loads or memory_may_run_out(facts)
        for runner in runners:
            runner.may_make_way = short if runner.paused else swaps
            runner.in_flight = loads and not runner.paused
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
        victims, front, limited, kept, paused = decide_with_pauses(
            rules, facts, runners, order, waiting, ready
        )
        _put_victims_last(rules, facts, runners, order, kept, facts.free_blocks)
        return victims, front, limited, kept, paused
    victims, front, limited = np.empty(0, np.int64), np.empty(0, np.int64), False
    if swaps_are_due(rules, facts):
        newcomers = waiting[ready]
        _keep_those_behind(rules, facts, runners, order, newcomers)
        room = left_by(rules, facts, runners)
        victims, admitted = choose_swaps(rules, facts, runners, order, newcomers, room)
        limited = len(victims) > 0
        front = newcomers[:admitted]
    if not limited:
        count = let_in(rules, facts, runners, order, waiting, ready)
        limited = count < min(len(waiting), facts.free_slots)
        front = waiting[:count]
    stays, free_blocks = np.ones(len(runners), np.bool_), facts.free_blocks
    for place in victims:
        stays[place] = False
        free_blocks += runners[place].freed_blocks
    kept = np.flatnonzero(stays)
    _put_victims_last(rules, facts, runners, order, kept, free_blocks)
    return victims, front, limited, kept, np.empty(0, np.int64)


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
def _put_victims_last(
    rules: Any, facts: Any, runners: NDArray[np.void], order: Order, kept: Rows, free_blocks: int
) -> None:
    """Where memory may run out in this step, the first to give its up is whose leaving promises
    most: it has much left to do, and little that has to be computed again."""
    most = len(kept) + blocks_for(facts.token_budget, facts.block_size)
    if free_blocks < most and free_blocks < _wanted_blocks(facts, runners, kept):
        victims_last(order, runners, _promises(rules, facts, runners, order, kept), kept)


@compiled
def _promises(
    rules: Any, facts: Any, runners: NDArray[np.void], order: Order, kept: Rows
) -> NDArray[np.float64]:
    """What it brings to take the memory of each of those that run, shape [runners]; of all the same
    where nothing is predicted of any. Nobody is the one to pay again and again."""
    promises, predicted = np.zeros(len(runners)), False
    for place in kept:
        request = order.table[runners[place].row]
        loaded = host_tokens(facts, request)
        promises[place] = promise(facts, request, request.computed_tokens - loaded, loaded)
        if request.memory_preemptions >= OFTEN:
            promises[place] = -math.inf
        predicted |= request.predicted > 0
    return promises if rules.predicts and predicted else np.zeros(len(runners))


@compiled
def _wanted_blocks(facts: Any, runners: NDArray[np.void], places: Rows) -> int:
    """Blocks for all that these running requests want to compute, at most."""
    wanted = 0
    for place in places:
        tokens = runners[place].wanted_tokens + facts.lookahead_tokens
        wanted += blocks_for(tokens, facts.block_size)
    return wanted


@compiled
def begin_one(
    rules: NDArray[np.void],
    facts: NDArray[np.void],
    runners: NDArray[np.void],
    table: RequestTable,
    values: NDArray[np.float64],
) -> bool:
    """`begin` for code that is not compiled."""
    return begin(rules[0], facts[0], runners, table, values)


@compiled
def look_one(
    rules: NDArray[np.void], facts: NDArray[np.void], runners: NDArray[np.void], order: Order
) -> Rows:
    """`look` for code that is not compiled."""
    return look(rules[0], facts[0], runners, borrowed(order))


@compiled
def decide_one(
    rules: NDArray[np.void],
    facts: NDArray[np.void],
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    ready: NDArray[np.bool_],
) -> tuple[Rows, Rows, bool, Rows, Rows]:
    """`decide` for code that is not compiled."""
    return decide(rules[0], facts[0], runners, borrowed(order), waiting, ready)


class StepOrder:
    """The frozen order of one step over a table, for code that is not compiled: `rank` it first.

    Attributes:
        groups: priority class and tier of each row as one key; see `policy.order`.
        ranks: the policy's rank of each row within its group.
    """

    def __init__(self) -> None:
        self.groups: NDArray[np.int64] = np.empty(0, dtype=np.int64)
        self.ranks: NDArray[np.float64] = np.empty(0)

    def rank(
        self,
        discipline: Discipline,
        table: RequestTable,
        facts: NDArray[np.void],
        admitted: NDArray[np.int64] = NO_ADMISSIONS,
        everyone: bool = True,
    ) -> None:
        """Rank the rows in use.

        Args:
            discipline: what decides.
            table: array of REQUEST, written.
            facts: array of one FACTS record: an engine's state and prices.
            admitted: arrival_index and priority of those admitted since the last call, shape
                [n, 2].
            everyone: rank running and paused requests too, and not those alone that wait.
        """
        if len(self.ranks) < len(table):
            self.groups = np.zeros(len(table), dtype=np.int64)
            self.ranks = np.zeros(len(table))
        address, values, guards = discipline.ranking, discipline.values, discipline.guards
        rank_one(address, values, guards, facts, self.of(table), admitted, everyone)

    def first(
        self,
        discipline: Discipline,
        table: RequestTable,
        count: int,
        want: int,
        admissions: int = 0,
    ) -> NDArray[np.int64]:
        """The best `want` waiting rows of the first `count`; with a blend, merged with those first
        in the queue, `admissions` being how many have been made before."""
        return first_in_order(self.of(table), count, discipline.blend, admissions, want)

    def of(self, table: RequestTable) -> Order:
        """The order, as compiled code takes it."""
        return Order(table, self.groups, self.ranks)


def warm_up(discipline: Discipline) -> None:
    """Run everything that a step with this discipline may call, on a table of two requests."""
    # Whatever it may do: all of it is one function, the same for every discipline.
    own = discipline.parameters.copy()  # one may be set anew
    whole = replace(discipline, parameters=own, preemption="pays", memory_growth=1.0)
    table = new_table(2)
    table["state"] = (WAITING, RUNNING)
    table["prompt_tokens"] = 1
    table["expected"] = table["initial"] = table["remaining"] = 1.0
    facts, runners = new_facts(1, token_budget=8, block_size=16), np.zeros(1, RUNNER)
    runners["row"] = runners["age"] = 1
    prices, order = StepTime(), StepOrder()
    prices.observe(1, 1, 1e-3)
    batch_s(prices.times[0], 1)
    state = EngineState(0.0, 0, 2, 1, 0, 1, 1, 1, 0, True, 0, 0)
    prepare_one(whole.rules, facts, prices.times, state)
    begin_one(whole.rules, facts, runners, table, whole.values)
    take_leads(new_shares(1), table, 2)
    note_done(table[1], 0, 0)
    order.rank(discipline, table, facts)
    ranked = order.of(table)
    waiting = look_one(whole.rules, facts, runners, ranked)
    ready = np.ones(len(waiting), np.bool_)
    decide_one(whole.rules, facts, runners, ranked, waiting, ready)
    order.first(discipline, table, 2, 2)
