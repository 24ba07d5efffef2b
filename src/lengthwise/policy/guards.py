"""Guards: what no policy may do to a request, however long its answer, nor to a tenant.

A guard moves a request into a better *tier*; the policy's rank decides within a tier. The request's
own priority class stays outside of both: the full key is (priority, tier, rank, queue order).

OVERDUE requests run first, in order of arrival:
  - bounded overtaking: K later arrivals of its class or a lower one got a slot while it waited.
    From then on only earlier overdue requests of its class go before it, so at most K such arrivals
    overtake it, or K + slots - 1 where a whole batch is admitted in the one frozen step that
    crosses the bound. Higher classes, which no guard holds back, do not count. K is
    `max_overtakes`, and `overtake_share` for each request of its class that waited when this one
    came, rounded up: in a longer queue, where it would have waited longer anyway, more may pass.
  - bounded lead: since it came the engine has done as much work as waited at most at once while it
    waited, and that of `max_lead` mean requests more. Served in order of arrival it would have
    started by then, or those who came last would, so that this is the wait that fcfs would have
    brought lately, and a little more. Work is counted in output tokens, what waits as predicted,
    what is done as it is, except while it runs itself. From half of the way on its rank shrinks,
    so that it comes back gradually.
  - maximum wait: it has waited `max_wait_s` seconds.
  - bounded stall: it has been paused for `max_stall_s` seconds. It goes on for at least the steps
    from one look for swaps to the next (`facts.SWAP_EVERY`). Who was only looked at (see
    `policy.peek`) still waits for its turn, and what bounds waits bounds that.
PROMOTED requests come next, in the policy's order: the starvation prevention of LTR (algorithm 1
of arXiv 2408.15792). A request that has not run for N = `starvation_threshold` steps is promoted
until it has run for M = `starvation_quantum` steps.

BEHIND are requests of a tenant that is more than `max_tenant_lead` tokens of service ahead of
another one that waits: they come last, in the policy's order, and may be overtaken by any number of
others; `max_wait_s` is for them, too.

How far each tenant has been served ahead of the others, the virtual token counter says. Sheng et
al., "Fairness in Serving Large Language Models", OSDI 2024 (arXiv 2401.00588), count what each
tenant has been served: the tokens of its prompts, and those of its answers twice. Whoever has been
served least goes first there, whatever the lengths. Here the counters only set a cap, the guard
`max_tenant_lead`: while a tenant is no further ahead of the one that was served least, of those
that wait, its requests go where the policy puts them; beyond that, behind all others.

A tenant that comes back begins where the one that was served least stands: credit is not saved up
while nobody of it waits. An answer counts with its predicted length from its first step on, and
with its true one once it has ended.
"""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.request import LOOKED, PAUSED, RUNNING, WAITING, RequestTable

OVERDUE: Final = 0
PROMOTED: Final = 1
ORDINARY: Final = 2
BEHIND: Final = 3
TIERS: Final = 4

NEVER: Final = 2**62  #: a threshold in steps or requests that nothing reaches

GUARDS: Final = np.dtype(
    [
        ("max_overtakes", np.int64),  # later arrivals admitted before this request
        ("overtake_share", np.float64),  # as many more for each of its class that it found waiting
        ("max_wait_s", np.float64),  # s
        ("max_lead", np.float64),  # mean requests that may be served before one beyond the queue
        ("starvation_threshold", np.int64),  # steps without running
        ("starvation_quantum", np.int64),  # steps run while promoted
        ("max_stall_s", np.float64),  # s that a pause may last
        ("max_tenant_lead", np.float64),  # tokens of service
    ]
)


def guard_record(
    max_overtakes: int | None = None,
    max_wait_s: float | None = None,
    starvation_threshold: int | None = None,
    starvation_quantum: int = 10,
    overtake_share: float = 0.0,
    max_stall_s: float | None = None,
    max_tenant_lead: float | None = None,
    max_lead: float | None = None,
) -> NDArray[np.void]:
    """The guards as an array of one GUARDS record; None turns a guard off."""
    return np.array(
        [
            (
                NEVER if max_overtakes is None else max_overtakes,
                overtake_share,
                np.inf if max_wait_s is None else max_wait_s,
                np.inf if max_lead is None else max_lead,
                NEVER if starvation_threshold is None else starvation_threshold,
                starvation_quantum,
                np.inf if max_stall_s is None else max_stall_s,
                np.inf if max_tenant_lead is None else max_tenant_lead,
            )
        ],
        dtype=GUARDS,
    )


@compiled
def tier(request: Any, guards: Any) -> int:
    """The tier of a request whose derived fields are up to date."""
    if request.wait_s >= guards.max_wait_s:
        return OVERDUE
    if request.state == WAITING and request.lead > guards.max_tenant_lead:
        return BEHIND
    if request.overtaken >= guards.max_overtakes + guards.overtake_share * request.ahead:
        return OVERDUE
    if request.lateness >= 1.0:
        return OVERDUE
    stalls = request.state == PAUSED and request.look != LOOKED
    if stalls and request.stalled_s >= guards.max_stall_s:
        return OVERDUE
    if request.promoted > 0 or request.idle_steps >= guards.starvation_threshold:
        return PROMOTED
    return ORDINARY


@compiled
def note_done(request: Any, decoded: int, prefilled: int) -> None:
    """Take up what the engine has done since the last time, before the request's state changes.

    Args:
        request: written; what is done while it runs is counted apart, see `lateness`.
        decoded: tokens of answers that the engine has computed so far.
        prefilled: tokens of prompts, likewise.
    """
    if request.state == RUNNING:
        request.decoded_meanwhile += decoded - request.decoded_ranked
        request.prefilled_meanwhile += prefilled - request.prefilled_ranked
    request.decoded_ranked, request.prefilled_ranked = decoded, prefilled


@compiled
def lateness(request: Any, guards: Any, served: float, mean_work: float) -> float:
    """How much has been done of the work that may be done while a request waits or is paused.

    That is what waited at most since it came, and `max_lead` mean requests. One that is longer than
    the mean is given less, by the eighth root of that, as it takes longer itself.

    Args:
        request: its `queued_work` and what is predicted of it are up to date.
        guards: a GUARDS record.
        served: what the engine has done since the request came, what was done while it ran aside,
            in output tokens of work.
        mean_work: what a request has taken so far, on average.

    Returns:
        A share, 0 where this guard is off; from 1 on the request is overdue.
    """
    if guards.max_lead == np.inf:
        return 0.0
    allowed = max(request.queued_work + guards.max_lead * mean_work, 1.0)
    longer = max(request.remaining / max(mean_work, 1.0), 1.0)
    return float(served * math.sqrt(math.sqrt(math.sqrt(longer))) / allowed)


@compiled
def hastened(rank: float, late: float) -> float:
    """A rank on its way to the front as its request gets late: to 0, or to -inf, at lateness 1.

    So that a queue that has grown old comes back little by little, and not all at once in the
    order of arrival.

    Args:
        rank: the policy's.
        late: of `lateness`, below 1.
    """
    square = late * late
    left = 1.0 - square * square * square * square
    return rank * left if rank > 0.0 else rank / left


OUTPUT_WEIGHT: Final = 2  #: of an answer's token; a prompt's counts 1 (the paper's section 3.1)
#: Tenants that are told apart at a time; others count with those without a name.
MOST_TENANTS: Final = 1024

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
