"""The order of one step: rank every request once, then pick the first few.

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
from lengthwise.policy.remaining import expected_remaining
from lengthwise.request import LOOKED, PAUSED, RUNNING, WAITING, RequestTable


def ranking_of(rank: Any, parameters: np.dtype[np.void]) -> Callable[..., None]:
    """The pass over the table that ranks by a policy, to be compiled.

    Args:
        rank: the policy's compiled rank function.
        parameters: the record that it reads its parameters from.
    """

    def rank_requests(
        values: Any,
        guards: Any,
        table: Any,
        count: int,
        now: float,
        step: int,
        prefill_weight: float,
        token_work: float,
        decoded: int,
        prefilled: int,
        admissions: int,
        admitted: Any,
        everyone: bool,
        groups: Any,
        ranks: Any,
    ) -> None:
        """Bring the derived fields up to date and rank rows 0 … count-1.

        Args:
            values: the policy's parameters as float64, one after the other.
            guards: array of one GUARDS record.
            table: array of REQUEST; derived fields, `overtaken` and `remaining` are written.
            count: rows in use.
            now: the step's clock reading, seconds.
            step: the step's number.
            prefill_weight: output tokens that cost as much as a prefilled one; 0 where ranks count
                output tokens alone.
            token_work: output tokens that cost as much as a prefilled one.
            decoded: tokens of answers that the engine has computed so far.
            prefilled: tokens of prompts that it has.
            admissions: made so far.
            admitted: of each request admitted since the last call its arrival_index and its
                priority, shape [n, 2]: see `overtakers`. Who was only looked at is not among them.
            everyone: rank running and paused requests too, and not those alone that wait.
            groups: output, priority and tier as one key, for each row.
            ranks: output, the policy's rank within the group, for each row; NaN becomes +inf.
        """
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


@compiled
def precedes(
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    a: int,
    b: int,
) -> bool:
    """Whether row a goes before row b: by group, then rank, then place in the queue."""
    if groups[a] != groups[b]:
        return bool(groups[a] < groups[b])
    if ranks[a] != ranks[b]:
        return bool(ranks[a] < ranks[b])
    return bool(table[a].sequence < table[b].sequence)


@compiled
def first_waiting(
    table: RequestTable,
    count: int,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    want: int,
) -> NDArray[np.int64]:
    """The first `want` waiting rows in order.

    A bounded heap with the last of the chosen at its root: O(count + chosen · log want).

    Returns:
        Row numbers, best first; fewer than `want` where there are no more.
    """
    heap = np.empty(want, np.int64)
    size = 0
    for i in range(count):
        if table[i].state != WAITING:
            continue
        if size < want:
            child = size
            size += 1
            while child > 0:
                parent = (child - 1) // 2
                if not precedes(table, groups, ranks, heap[parent], i):
                    break
                heap[child] = heap[parent]
                child = parent
            heap[child] = i
        elif precedes(table, groups, ranks, i, heap[0]):
            _replace_root(table, groups, ranks, heap, size, i)
    chosen = np.empty(size, np.int64)
    for place in range(size - 1, -1, -1):
        chosen[place] = heap[0]
        size -= 1
        if size > 0:
            _replace_root(table, groups, ranks, heap, size, heap[size])
    return chosen


@compiled
def _replace_root(
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    heap: NDArray[np.int64],
    size: int,
    row: int,
) -> None:
    """Put a row in the place of the heap's root and sift it down."""
    hole = 0
    while True:
        child = 2 * hole + 1
        if child >= size:
            break
        if child + 1 < size and precedes(table, groups, ranks, heap[child], heap[child + 1]):
            child += 1
        if not precedes(table, groups, ranks, row, heap[child]):
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = row


@compiled
def first_in_order(
    table: RequestTable,
    count: int,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    blend: float,
    admissions: int,
    want: int,
) -> NDArray[np.int64]:
    """The best `want` waiting rows; with a blend, merged with those first in the queue.

    Args:
        table: array of REQUEST.
        count: rows in use.
        groups: of `rank_requests`.
        ranks: of `rank_requests`.
        blend: share of admissions by policy, between 0 and 1.
        admissions: how many have been made before.
        want: how many rows at most.
    """
    chosen = first_waiting(table, count, groups, ranks, want)
    if blend >= 1.0:
        return chosen
    classes = np.empty(count, np.int64)
    for i in range(count):
        classes[i] = table[i].priority
    queued = first_waiting(table, count, classes, np.zeros(count), want)
    return interleave(chosen, queued, blend, admissions)


@compiled
def interleave(
    by_policy: NDArray[np.int64],
    by_arrival: NDArray[np.int64],
    blend: float,
    admissions: int,
) -> NDArray[np.int64]:
    """Merge two orders so that a share `blend` of all admissions follows the policy.

    The other admissions go to whoever is first in the queue, spread evenly: with blend 0.9 every
    tenth slot. A request at place p of the queue is therefore admitted after at most about
    p / (1 - blend) admissions, whatever the policy says.

    Args:
        by_policy: rows in the policy's order.
        by_arrival: rows in queue order.
        blend: share of admissions by policy, between 0 and 1.
        admissions: how many have been made before, so that the shares hold over time.

    Returns:
        Rows, as many as `by_policy` has.
    """
    highest = -1
    for row in by_policy:
        highest = max(highest, row)
    for row in by_arrival:
        highest = max(highest, row)
    taken = np.zeros(highest + 1, np.bool_)
    merged = np.empty(len(by_policy), np.int64)
    policy, arrival = 0, 0
    for place in range(len(by_policy)):
        slot = admissions + place
        while policy < len(by_policy) and taken[by_policy[policy]]:
            policy += 1
        while arrival < len(by_arrival) and taken[by_arrival[arrival]]:
            arrival += 1
        in_turn = math.floor((slot + 1) * (1.0 - blend)) > math.floor(slot * (1.0 - blend))
        if in_turn and arrival < len(by_arrival):
            row = by_arrival[arrival]
        elif policy < len(by_policy):
            row = by_policy[policy]
        else:
            return merged[:place]
        taken[row] = True
        merged[place] = row
    return merged


@compiled
def victims_last(
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    runners: NDArray[np.void],
    places: NDArray[np.int64],
) -> None:
    """Put running requests in an order from whose tail the engine may take memory victims.

    Within a priority class, requests in the middle of their prefill stay behind the others: in
    front they would take the token budget of those that decode.

    Args:
        table: array of REQUEST.
        groups: of `rank_requests`.
        ranks: of `rank_requests`.
        runners: array of RUNNER.
        places: among the runners, sorted: those to be kept longest first.
    """
    # Insertion sort: a few hundred at most, and nearly in order from one step to the next.
    for k in range(1, len(places)):
        moved = places[k]
        hole = k
        while hole > 0 and _is_kept_longer(
            table, groups, ranks, runners[moved], runners[places[hole - 1]]
        ):
            places[hole] = places[hole - 1]
            hole -= 1
        places[hole] = moved


@compiled
def _is_kept_longer(
    table: RequestTable,
    groups: NDArray[np.int64],
    ranks: NDArray[np.float64],
    a: Any,
    b: Any,
) -> bool:
    first, second = table[a.row].priority, table[b.row].priority
    if first != second:
        return bool(first < second)
    if a.prefilling != b.prefilling:
        return bool(b.prefilling)
    return precedes(table, groups, ranks, a.row, b.row)
