"""How far each tenant has been served ahead of the others: the virtual token counter.

Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024 (arXiv 2401.00588), count what
each tenant has been served: the tokens of its prompts, and those of its answers twice. Whoever has
been served least goes first there, whatever the lengths. Here the counters only set a cap, the
guard `max_tenant_lead`: while a tenant is no further ahead of the one that was served least, of
those that wait, its requests go where the policy puts them; beyond that, behind all others.

A tenant that comes back begins where the one that was served least stands: credit is not saved up
while nobody of it waits. An answer counts with its predicted length from its first step on, and
with its true one once it has ended.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.request import PAUSED, RUNNING, WAITING, RequestTable

OUTPUT_WEIGHT: Final = 2  #: of an answer's token; a prompt's counts 1 (the paper's section 3.1)
MOST_TENANTS: Final = (
    1024  #: tenants that are told apart at a time; others count with those without a name
)

#: One tenant. Service is in prompt tokens.
TENANT: Final = np.dtype(
    [
        ("ended", np.int64),  # service of its requests that have ended, and what it was lifted by
        ("served", np.int64),  # that, and the service of those that have begun, when last looked at
        ("waits", np.bool_),  # whether a request of it waited then
    ],
    align=True,
)


class Shares(NamedTuple):
    """What all tenants of an engine were served."""

    tenants: NDArray[np.void]  # [t], TENANT, by the column `tenant` of requests
    least: NDArray[np.int64]  # [1], of those that waited when last looked at


def new_shares(tenants: int) -> Shares:
    """Nobody has been served anything."""
    return Shares(np.zeros(tenants, TENANT), np.zeros(1, np.int64))


@compiled
def service(prompt_tokens: int, output_tokens: float) -> int:
    """What a request counts for. Integers, so that the order in which they are added up is free."""
    return int(prompt_tokens + OUTPUT_WEIGHT * round(output_tokens))


@compiled
def take_leads(shares: Shares, table: RequestTable, count: int) -> None:
    """Bring `lead` of the waiting rows among 0 … count-1 up to date.

    Args:
        shares: written.
        table: array of REQUEST; `lead` is written.
        count: rows in use.
    """
    tenants = shares.tenants
    waits = np.zeros(len(tenants), np.bool_)
    for t in range(len(tenants)):
        tenants[t].served = tenants[t].ended
    for i in range(count):
        request = table[i]
        if request.state == WAITING:
            waits[request.tenant] = True
        if _has_begun(request):
            tenants[request.tenant].served += service(request.prompt_tokens, request.expected)
    least = _least(tenants, waits, shares.least[0], True)
    for t in range(len(tenants)):
        if waits[t] and not tenants[t].waits and tenants[t].served < least:
            tenants[t].ended += least - tenants[t].served
            tenants[t].served = least
        tenants[t].waits = waits[t]
    shares.least[0] = least = _least(tenants, waits, least, False)
    for i in range(count):
        request = table[i]
        if request.state == WAITING:
            request.lead = tenants[request.tenant].served - least


@compiled
def _has_begun(request: Any) -> bool:
    if request.state == RUNNING or request.state == PAUSED:
        return True
    return bool(request.state == WAITING and request.age > 0)


@compiled
def _least(tenants: Any, waits: NDArray[np.bool_], otherwise: int, also_before: bool) -> int:
    """The least service of those that wait, and did before if that is asked for too."""
    least, found = otherwise, False
    for t in range(len(tenants)):
        if waits[t] and (tenants[t].waits or not also_before):
            if not found or tenants[t].served < least:
                least = tenants[t].served
            found = True
    return int(least)


class Tenants:
    """Gives tenants their rows, and takes rows back when all are in use.

    While a row is free, nobody is forgotten. When none is, a new name makes half of the tenants
    that have no request here go, those served least. So whoever was served more than half of them
    keeps what counts against it, however many names come; the lead of one that has gone is
    forgotten, and it begins again where the one that was served least stands.

    Attributes:
        shares: what each was served; replaced by a larger one when it is full.
    """

    def __init__(self) -> None:
        self.shares: Shares = new_shares(1)
        self._rows: dict[str, int] = {"": 0}
        # By row.
        self._names = [""]
        self._live = [0]  # requests
        # Rows: of tenants with a name that have no request here, and of nobody.
        self._idle: set[int] = set()
        self._free: list[int] = []
        service(0, 0.0)  # compiles

    def arrive(self, name: str) -> int:
        """A request has come; "" is the name of all tenants without one.

        Returns:
            The row of its tenant.
        """
        row = self._rows.get(name)
        if row is None:
            row = self._new_row(name)
        self._live[row] += 1
        self._idle.discard(row)
        return row

    def leave(self, row: int, prompt_tokens: int, output_tokens: int) -> None:
        """A request of a tenant has ended; it counts nothing if it had not begun."""
        self._live[row] -= 1
        if row > 0 and not self._live[row]:
            self._idle.add(row)
        if output_tokens > 0:
            self.shares.tenants["ended"][row] += service(prompt_tokens, float(output_tokens))

    def _new_row(self, name: str) -> int:
        if not self._free and len(self._live) == MOST_TENANTS:
            self._forget()
            if not self._free:
                return 0  # all are here
        if self._free:
            row = self._free.pop()
            self._names[row] = name
        else:
            row = len(self._live)
            self._live.append(0)
            self._names.append(name)
            if row == len(self.shares.tenants):
                more = np.zeros(row, TENANT)
                tenants = np.concatenate([self.shares.tenants, more])
                self.shares = self.shares._replace(tenants=tenants)
        self._rows[name] = row
        return row

    def _forget(self) -> None:
        """Free the rows of half of the tenants that have no request here, those served least."""
        ended = self.shares.tenants["ended"]
        idle = sorted(self._idle, key=lambda row: (ended[row], row))
        for row in reversed(idle[: (len(idle) + 1) // 2]):
            self._idle.remove(row)
            self._free.append(row)
            del self._rows[self._names[row]]
            self.shares.tenants[row] = 0
