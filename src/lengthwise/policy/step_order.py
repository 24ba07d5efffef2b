"""The pre-pass for code that is not compiled: one scheduler's order, step after step.

Records are handed over as arrays of one: numba takes microseconds to look at a lone record.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy import due, pointer, prepass
from lengthwise.policy.borrowed import borrowed
from lengthwise.policy.discipline import Discipline
from lengthwise.policy.due import EngineState
from lengthwise.policy.facts import RUNNER, new_facts
from lengthwise.policy.order import Order, first_in_order
from lengthwise.policy.select import Rows
from lengthwise.policy.step_time import StepTime, batch_s
from lengthwise.policy.tenants import new_shares, take_leads
from lengthwise.request import RUNNING, WAITING, RequestTable, new_table

NOBODY: Final = np.empty((0, 2), dtype=np.int64)  #: no request was admitted

Records = NDArray[np.void]  #: array of one record


def prepare(discipline: Discipline, facts: Records, times: Records, state: EngineState) -> bool:
    """Write the facts of the step that comes next; see `due.prepare`."""
    return _prepare(discipline.rules, facts, times, state)


def begin(
    discipline: Discipline, facts: Records, runners: NDArray[np.void], table: RequestTable
) -> bool:
    """Take up the running requests; whether something is to decide. See `prepass.begin`."""
    return _begin(discipline.rules, facts, runners, table, discipline.values)


class StepOrder:
    """The frozen order of one step over a table of requests: `rank` once, then all else.

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
        facts: Records,
        admitted: NDArray[np.int64] = NOBODY,
        everyone: bool = True,
    ) -> None:
        """Rank the rows in use.

        Args:
            discipline: what decides.
            table: array of REQUEST, written.
            facts: of an engine: its state and prices.
            admitted: arrival_index and priority of those admitted since the last call, shape
                [n, 2].
            everyone: rank running and paused requests too, and not those alone that wait.
        """
        if len(self.ranks) < len(table):
            self.groups = np.zeros(len(table), dtype=np.int64)
            self.ranks = np.zeros(len(table))
        _rank(
            discipline.ranking,
            discipline.values,
            discipline.guards,
            facts,
            self._of(table),
            admitted,
            everyone,
        )

    def first(
        self,
        discipline: Discipline,
        table: RequestTable,
        count: int,
        want: int,
        admissions: int = 0,
    ) -> Rows:
        """The best `want` waiting rows of the first `count`; with a blend, merged with those first
        in the queue, `admissions` being how many have been made before."""
        return first_in_order(self._of(table), count, discipline.blend, admissions, want)

    def look(
        self,
        discipline: Discipline,
        facts: Records,
        runners: NDArray[np.void],
        table: RequestTable,
    ) -> Rows:
        """Of whom the engine has to be asked more; see `prepass.look`."""
        return _look(discipline.rules, facts, runners, self._of(table))

    def decide(
        self,
        discipline: Discipline,
        facts: Records,
        runners: NDArray[np.void],
        table: RequestTable,
        waiting: Rows,
        ready: NDArray[np.bool_],
    ) -> tuple[Rows, Rows, bool, Rows, Rows]:
        """Who makes way, comes in, keeps its memory, is left out; see `prepass.decide`."""
        return _decide(discipline.rules, facts, runners, self._of(table), waiting, ready)

    def _of(self, table: RequestTable) -> Order:
        return Order(table, self.groups, self.ranks)


@compiled
def _prepare(rules: Records, facts: Records, times: Records, state: EngineState) -> bool:
    return due.prepare(rules[0], facts[0], times[0], state)


@compiled
def _begin(
    rules: Records,
    facts: Records,
    runners: NDArray[np.void],
    table: RequestTable,
    values: NDArray[np.float64],
) -> bool:
    return prepass.begin(rules[0], facts[0], runners, table, values)


@compiled
def _rank(
    address: int,
    values: NDArray[np.float64],
    guards: Records,
    facts: Records,
    order: Order,
    admitted: NDArray[np.int64],
    everyone: bool,
) -> None:
    ranking = pointer.Ranking(address, values, guards)
    pointer.rank(ranking, facts[0], order, admitted, everyone)


@compiled
def _look(rules: Records, facts: Records, runners: NDArray[np.void], order: Order) -> Rows:
    return prepass.look(rules[0], facts[0], runners, borrowed(order))


@compiled
def _decide(
    rules: Records,
    facts: Records,
    runners: NDArray[np.void],
    order: Order,
    waiting: Rows,
    ready: NDArray[np.bool_],
) -> tuple[Rows, Rows, bool, Rows, Rows]:
    return prepass.decide(rules[0], facts[0], runners, borrowed(order), waiting, ready)


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
    prepare(whole, facts, prices.times, state)
    begin(whole, facts, runners, table)
    take_leads(new_shares(1), table, 2)
    order.rank(discipline, table, facts)
    waiting = order.look(whole, facts, runners, table)
    order.decide(whole, facts, runners, table, waiting, np.ones(len(waiting), np.bool_))
    order.first(discipline, table, 2, 2)
