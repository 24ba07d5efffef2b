"""A step's facts as a file: what the pre-pass decided on a server, decided again anywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, one_line
from lengthwise.policy.discipline import RULES
from lengthwise.policy.facts import (
    FACTS,
    RUNNER,
)
from lengthwise.policy.guards import GUARDS
from lengthwise.policy.order import Order
from lengthwise.policy.prepass import decide, look
from lengthwise.policy.ranking import Ranking, rank, ranking_address
from lengthwise.policy.registry import get_policy
from lengthwise.policy.select import (
    Rows,
)
from lengthwise.request import REQUEST, RequestTable

_RECORDS: Final = {
    "rules": RULES,
    "guards": GUARDS,
    "facts": FACTS,
    "table": REQUEST,
    "runners": RUNNER,
}


class Decision(NamedTuple):
    """What `decide` gives; where there is nothing to decide, all stay as they are."""

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

    def save(self, path: Path) -> None:
        """Write it to a file, `.npz`."""
        arrays = {name: value for name, value in vars(self).items() if name != "policy"}
        np.savez(path, policy=np.array(self.policy), **arrays)


def load_step(path: Path) -> RecordedStep:
    """Read a step that `RecordedStep.save` wrote.

    Raises:
        InputError: the file is none.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            named = {name: arrays[name] for name in arrays.files}
        for name, kind in _RECORDS.items():
            if named[name].dtype != kind:
                raise ValueError(f"{name} are of another version")
            named[name] = named[name].view(kind)  # a file does not say that fields are aligned
        return RecordedStep(policy=str(named.pop("policy")), **named)
    except Exception as error:  # a file may hold anything
        raise InputError(f"{path} is no recorded step: {one_line(error)}") from error
