"""A step's facts: what the pre-pass decided on a server, decided again anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.policy.order import Order
from lengthwise.policy.pointer import Ranking, rank, ranking_address
from lengthwise.policy.prepass import decide, look
from lengthwise.policy.registry import get_policy
from lengthwise.policy.select import Rows
from lengthwise.request import RequestTable


class Decision(NamedTuple):
    """What `prepass.decide` gives; where there is nothing to decide, all stay as they are."""

    victims: Rows
    front: Rows
    limited: bool
    kept: Rows
    paused: Rows


@dataclass(frozen=True)
class RecordedStep:
    """All that the decision before one step depends on, as it was before the requests were ranked.

    Attributes:
        policy: its name.
        rules: array of one RULES record.
        values: the policy's parameters.
        guards: array of one GUARDS record.
        facts: array of one FACTS record.
        table: the rows in use.
        admitted: arrival_index and priority of those admitted since the last ranking.
        runners: array of RUNNER, with what the engine said of those that it was asked about.
        ready: which of the rows that may come in the engine could admit.
    """

    policy: str
    rules: NDArray[np.void]
    values: NDArray[np.float64]
    guards: NDArray[np.void]
    facts: NDArray[np.void]
    table: RequestTable
    admitted: NDArray[np.int64]
    runners: NDArray[np.void]
    ready: NDArray[np.bool_]

    def decide(self) -> Decision:
        """Rank everyone and decide, as it was done then."""
        table, runners, facts = self.table.copy(), self.runners.copy(), self.facts.copy()[0]
        order = Order(table, np.zeros(len(table), np.int64), np.zeros(len(table)))
        address = ranking_address(get_policy(self.policy))
        rank(Ranking(address, self.values, self.guards), facts, order, self.admitted, True)
        rules = self.rules[0]
        waiting = look(rules, facts, runners, order)
        runners["may_make_way"] &= self.runners["may_make_way"]
        return Decision(*decide(rules, facts, runners, order, waiting, self.ready))
