"""Guards: what no policy may do to a request, however long its answer.

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
another one that waits (see `policy.tenants`): they come last, in the policy's order, and may be
overtaken by any number of others; `max_wait_s` is for them, too.
"""

from __future__ import annotations

import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.request import LOOKED, PAUSED, WAITING

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
