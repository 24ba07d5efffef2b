"""The ranking of one step: derived fields brought up to date, then every request ranked once.

Ranks are computed once and then frozen, since the engine looks at a request, allocates for it and
only then takes it: all three must see the same one. One pass costs about 5 ns a request, so even
100,000 waiting requests cost less than one engine step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.guards import BEHIND, OVERDUE, TIERS, hastened, lateness, tier
from lengthwise.policy.order import Order
from lengthwise.policy.remaining import expected_remaining
from lengthwise.request import LOOKED, PAUSED, RUNNING, WAITING


def ranking_of(rank: Any, parameters: np.dtype[np.void]) -> Callable[..., None]:
    """The pass over the table that ranks by a policy, to be compiled.

    Args:
        rank: the policy's compiled rank function.
        parameters: the record that it reads its parameters from.
    """

    def rank_requests(
        values: Any,
        guards: Any,
        facts: Any,
        order: Order,
        admitted: Any,
        everyone: bool,
    ) -> None:
        """Bring the derived fields up to date and rank the rows in use.

        Args:
            values: the policy's parameters as float64, one after the other.
            guards: array of one GUARDS record.
            facts: a FACTS record: its state and prices.
            order: written: derived fields, `overtaken` and `remaining` of the requests, and the
                groups and ranks of their rows. A rank that is NaN becomes +inf.
            admitted: of each request admitted since the last call its arrival_index and its
                priority, shape [n, 2]: see `overtakers`. Who was only looked at is not among them.
            everyone: rank running and paused requests too, and not those alone that wait.
        """
        table, groups, ranks = order
        count, now, step, admissions = facts.rows, facts.now_s, facts.step, facts.admissions
        decoded, prefilled, token_work = facts.decoded, facts.prefilled, facts.token_work
        prefill_weight = facts.prefill_weight
        record = values.view(parameters)[0]
        done = decoded + token_work * prefilled
        mean_work = done / max(admissions, 1)
        queued_work = 0
        for i in range(count):
            request = table[i]
            if not _is_ranked(request, everyone):
                continue
            if request.state == PAUSED:
                request.stalled_s = now - request.paused_s
            request.wait_s = now - request.arrival_s
            request.idle_steps = step - request.last_step
            if request.age > 0:
                # A prediction made later says what was still to come at that age.
                made = request.predicted_age
                request.remaining = expected_remaining(
                    request.expected - made,
                    request.low - made,
                    request.median - made,
                    request.high - made,
                    request.age - made,
                )
            # The last known token is computed in the step that gives the next one.
            held = request.cached_tokens if request.state == WAITING else request.computed_tokens
            known = request.prompt_tokens + request.age
            request.prefill_work = prefill_weight * max(known - held - 1, 0)
            if not _waits(request):
                continue
            # The whole prompt, since what is cached is looked up for a few only; and in whole
            # tokens, so that the sum does not depend on the order of the rows.
            known = known if request.state == WAITING else 0
            work = request.remaining + token_work * known
            if request.expected == 0.0:  # nothing is predicted: it counts as requests do so far
                work = mean_work
            queued_work += int(work + 0.5)
            request.overtaken += overtakers(request, admitted)
        for i in range(count):
            request = table[i]
            if not _is_ranked(request, everyone):
                continue
            if _waits(request):
                request.queued_work = max(request.queued_work, queued_work)
            served = decoded - request.decoded_before
            served += token_work * (prefilled - request.prefilled_before)
            request.lateness = lateness(request, guards[0], served, mean_work)
            place = tier(request, guards[0])
            groups[i] = request.priority * TIERS + place
            if place == OVERDUE:
                ranks[i] = request.arrival_index
            else:
                value = rank(request, now, record)
                # Whose tenant is ahead waits for others, however late it gets.
                late = 0.0 if place == BEHIND else request.lateness
                ranks[i] = math.inf if math.isnan(value) else hastened(value, late)

    return rank_requests


@compiled
def overtakers(request: Any, admitted: NDArray[np.int64]) -> int:
    """How many of those admitted overtook a waiting request: later arrivals of its own class or of
    a lower one. Higher classes go first whatever the policy says, and count against nobody."""
    arrived, priority = request.arrival_index, request.priority
    count = 0
    for k in range(len(admitted)):
        count += int(admitted[k, 0] > arrived and admitted[k, 1] >= priority)
    return count


@compiled
def _waits(request: Any) -> bool:
    """Whether its turn has not come; it may have been looked at, see `policy.peek`."""
    return bool(request.state == WAITING or request.look == LOOKED)


@compiled
def _is_ranked(request: Any, everyone: bool) -> bool:
    holds = request.state == RUNNING or request.state == PAUSED
    return bool(_waits(request) or (everyone and holds))
