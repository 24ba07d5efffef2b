"""The pre-pass for code that is not compiled: one scheduler's order, step after step."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy import prepass
from lengthwise.policy.discipline import Discipline
from lengthwise.policy.order import first_in_order
from lengthwise.policy.pointer import rank
from lengthwise.policy.select import Rows
from lengthwise.request import RequestTable

_NOBODY: Final = np.empty(0, dtype=np.int64)


class StepOrder:
    """The frozen order of one step over a table of requests: `rank` once, then all else.

    Attributes:
        groups: of `rank_requests`.
        ranks: of `rank_requests`.
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
        rank(
            discipline.ranking,
            discipline.values,
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

    def look(
        self,
        discipline: Discipline,
        facts: NDArray[np.void],
        runners: NDArray[np.void],
        table: RequestTable,
    ) -> Rows:
        """Of whom the engine has to be asked more; see `prepass.look`, `facts` as an array."""
        return look(discipline.rules, facts, runners, table, self.groups, self.ranks)

    def decide(
        self,
        discipline: Discipline,
        facts: NDArray[np.void],
        runners: NDArray[np.void],
        table: RequestTable,
        waiting: Rows,
        ready: NDArray[np.bool_],
    ) -> tuple[Rows, Rows, bool, Rows, Rows]:
        """Who makes way, comes in, keeps its memory, is left out; see `prepass.decide`."""
        return decide(
            discipline.rules, facts, runners, table, self.groups, self.ranks, waiting, ready
        )


@compiled
def prepare(
    rules: NDArray[np.void],
    facts: NDArray[np.void],
    times: NDArray[np.void],
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
    """`prepass.prepare` for arrays of one record each."""
    return prepass.prepare(
        rules[0],
        facts[0],
        times[0],
        now_s,
        step,
        rows,
        running,
        paused,
        waiting,
        free_slots,
        free_places,
        free_blocks,
        may_swap,
        arrivals,
        admissions,
    )


@compiled
def begin(
    rules: NDArray[np.void],
    facts: NDArray[np.void],
    runners: NDArray[np.void],
    table: RequestTable,
    values: NDArray[np.float64],
) -> bool:
    """`prepass.begin` for arrays of one record each."""
    return prepass.begin(rules[0], facts[0], runners, table, values)


@compiled
def look(
    rules: NDArray[np.void],
    facts: NDArray[np.void],
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
) -> Rows:
    """`prepass.look` for arrays of one record each."""
    return prepass.look(rules[0], facts[0], runners, table, groups, ranks)


@compiled
def decide(
    rules: NDArray[np.void],
    facts: NDArray[np.void],
    runners: NDArray[np.void],
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    waiting: Rows,
    ready: NDArray[np.bool_],
) -> tuple[Rows, Rows, bool, Rows, Rows]:
    """`prepass.decide` for arrays of one record each."""
    return prepass.decide(rules[0], facts[0], runners, table, groups, ranks, waiting, ready)
