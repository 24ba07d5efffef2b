"""The order of one step: who goes before whom, and the first few of those that wait."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.policy.borrowed import borrowed
from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.request import WAITING, RequestTable


class Order(NamedTuple):
    """The requests of an engine and the order of one step, as `policy.ranking` has ranked them.

    Attributes:
        table: array of REQUEST, shape [rows].
        groups: priority class and tier of each row as one key, shape [rows].
        ranks: the policy's rank of each row within its group, shape [rows].
    """

    table: RequestTable
    groups: NDArray[np.int64]
    ranks: NDArray[np.float64]


@compiled
def precedes(
    order: Order,
    a: int,
    b: int,
) -> bool:
    """Whether row a goes before row b: by group, then rank, then place in the queue."""
    groups, ranks = order.groups, order.ranks
    if groups[a] != groups[b]:
        return bool(groups[a] < groups[b])
    if ranks[a] != ranks[b]:
        return bool(ranks[a] < ranks[b])
    return bool(order.table[a].sequence < order.table[b].sequence)


@compiled
def ranks_behind(order: Order, row: int, other: int) -> bool:
    """Whether `row` ranks truly behind `other`: a tie is no reason to preempt."""
    groups, ranks = order.groups, order.ranks
    return bool(
        groups[row] > groups[other] or (groups[row] == groups[other] and ranks[row] > ranks[other])
    )


@compiled
def place_in_order(order: Order, rows: NDArray[np.int64], row: int) -> int:
    """Where `row`, put back ahead of its equals, goes among rows that are in order."""
    groups, ranks = order.groups, order.ranks
    for place in range(len(rows)):
        other = rows[place]
        if groups[other] > groups[row] or (
            groups[other] == groups[row] and ranks[other] >= ranks[row]
        ):
            return place
    return len(rows)


@compiled
def first_waiting(
    order: Order,
    count: int,
    want: int,
) -> NDArray[np.int64]:
    """The first `want` waiting rows in order.

    A bounded heap with the last of the chosen at its root: O(count + chosen · log want).

    Returns:
        Row numbers, best first; fewer than `want` where there are no more.
    """
    ranked: Order = borrowed(order)
    heap = np.empty(want, np.int64)
    size = 0
    for i in range(count):
        if ranked.table[i].state != WAITING:
            continue
        if size < want:
            child = size
            size += 1
            while child > 0:
                parent = (child - 1) // 2
                if not precedes(ranked, heap[parent], i):
                    break
                heap[child] = heap[parent]
                child = parent
            heap[child] = i
        elif precedes(ranked, i, heap[0]):
            _replace_root(ranked, heap, size, i)
    chosen = np.empty(size, np.int64)
    for place in range(size - 1, -1, -1):
        chosen[place] = heap[0]
        size -= 1
        if size > 0:
            _replace_root(ranked, heap, size, heap[size])
    return chosen


@compiled
def _replace_root(
    order: Order,
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
        if child + 1 < size and precedes(order, heap[child], heap[child + 1]):
            child += 1
        if not precedes(order, row, heap[child]):
            break
        heap[hole] = heap[child]
        hole = child
    heap[hole] = row


@compiled
def first_in_order(
    order: Order,
    count: int,
    blend: float,
    admissions: int,
    want: int,
) -> NDArray[np.int64]:
    """The best `want` waiting rows; with a blend, merged with those first in the queue.

    Args:
        order: of all requests.
        count: rows in use.
        blend: share of admissions by policy, between 0 and 1.
        admissions: how many have been made before.
        want: how many rows at most.
    """
    chosen = first_waiting(order, count, want)
    if blend >= 1.0:
        return chosen
    classes = np.empty(count, np.int64)
    for i in range(count):
        classes[i] = order.table[i].priority
    queued = first_waiting(Order(order.table, classes, np.zeros(count)), count, want)
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
    order: Order,
    runners: NDArray[np.void],
    promises: NDArray[np.float64],
    places: NDArray[np.int64],
) -> None:
    """Put running requests in an order from whose tail the engine may take memory victims.

    Those in the middle of their prefill stay behind the others of their priority class: in front
    they would take the token budget of those that decode. Overdue ones go last in order of
    arrival, as the guards' promises want it.

    Args:
        order: of all requests.
        runners: array of RUNNER.
        promises: what it brings to take the memory of each, shape [runners]; equal ones go by the
            order.
        places: among the runners, sorted: those to be kept longest first.
    """
    # Insertion sort: a few hundred at most, and nearly in order from one step to the next.
    for k in range(1, len(places)):
        moved = places[k]
        hole = k
        while hole > 0 and _is_kept_longer(order, runners, promises, moved, places[hole - 1]):
            places[hole] = places[hole - 1]
            hole -= 1
        places[hole] = moved


@compiled
def _is_kept_longer(
    order: Order, runners: NDArray[np.void], promises: NDArray[np.float64], a: int, b: int
) -> bool:
    row, other = runners[a].row, runners[b].row
    first, second = order.table[row].priority, order.table[other].priority
    if first != second:
        return bool(first < second)
    if runners[a].prefilling != runners[b].prefilling:
        return bool(runners[b].prefilling)
    alike = order.groups[row] == order.groups[other] and order.groups[row] % TIERS != OVERDUE
    if alike and promises[a] != promises[b]:
        return bool(promises[a] < promises[b])
    return precedes(order, row, other)
