"""The pre-pass for code that is not compiled: one scheduler's order, step after step."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy.discipline import Discipline
from lengthwise.policy.order import first_in_order
from lengthwise.policy.pointer import rank
from lengthwise.policy.prepass import decide, look
from lengthwise.policy.select import Rows
from lengthwise.request import RequestTable

NOBODY: Final = np.empty((0, 2), dtype=np.int64)  #: no request was admitted


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
        admitted: NDArray[np.int64] = NOBODY,
        everyone: bool = True,
        prefill_weight: float = 0.0,
        token_work: float = 0.0,
        decoded: int = 0,
        prefilled: int = 0,
        admissions: int = 0,
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
            token_work,
            decoded,
            prefilled,
            admissions,
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
        return look(discipline.rules[0], facts[0], runners, table, self.groups, self.ranks)

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
            discipline.rules[0], facts[0], runners, table, self.groups, self.ranks, waiting, ready
        )
