"""The order of a step: against a plain sort, with guards, ties, blends and preempted requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.policy.discipline import Discipline, make_discipline
from lengthwise.policy.order import interleave
from lengthwise.policy.prepass import StepOrder
from lengthwise.request import FREE, PARKED, RUNNING, WAITING, RequestTable, new_table
from tests.support.step_facts import facts_of

Admitted = Sequence[tuple[int, int]]  # arrival_index and priority of each


def table_of(*requests: dict[str, Any]) -> RequestTable:
    table = new_table(max(len(requests), 1))
    for row, fields in enumerate(requests):
        defaults = {"state": WAITING, "sequence": row, "arrival_index": row, "expected": 1.0}
        for name, value in {**defaults, **fields}.items():
            table[name][row] = value
    return table


def ordered(
    discipline: Discipline,
    table: RequestTable,
    now: float = 0.0,
    step: int = 0,
    admitted: Admitted = (),
    want: int = 100,
    admissions: int = 0,
) -> list[int]:
    order = StepOrder()
    pairs = np.array(admitted, np.int64).reshape(-1, 2)
    order.rank(discipline, table, facts_of(len(table), now, step), pairs)
    rows = order.first(discipline, table, len(table), want, admissions)
    return [int(row) for row in rows]


requests = st.lists(
    st.fixed_dictionaries(
        {
            "state": st.sampled_from([FREE, WAITING, WAITING, WAITING, RUNNING, PARKED]),
            "priority": st.integers(-1, 1),
            "score": st.integers(0, 4).map(float),
            "overtaken": st.integers(0, 3),
            "promoted": st.integers(0, 1),
        }
    ),
    max_size=40,
)


@settings(max_examples=200, deadline=None)
@given(requests, st.integers(1, 50), st.randoms(use_true_random=False))
def test_the_first_few_are_those_of_a_full_sort(
    fields: list[dict[str, Any]], want: int, random: Any
) -> None:
    places = list(range(len(fields)))
    random.shuffle(places)
    table = table_of(
        *({**f, "sequence": p, "arrival_index": p} for f, p in zip(fields, places, strict=True))
    )
    discipline = make_discipline("ltr", max_overtakes=2)

    def key(row: int) -> tuple[int, int, float, int]:
        request = table[row]
        if request["overtaken"] >= 2:
            tier, value = 0, float(request["arrival_index"])
        else:
            tier, value = (1 if request["promoted"] else 2), float(request["score"])
        return int(request["priority"]), tier, value, int(request["sequence"])

    waiting = [row for row in range(len(fields)) if table["state"][row] == WAITING]
    expected = sorted(waiting, key=key)
    assert ordered(discipline, table, want=want) == expected[:want]

    order = StepOrder()
    order.rank(discipline, table, facts_of(len(table)))
    collected: list[int] = []
    while len(rows := order.first(discipline, table, len(table), 3)):
        collected += [int(row) for row in rows]
        table["state"][rows] = RUNNING
    assert collected == expected, "asking for more continues where the last answer ended"


def test_equals_run_in_queue_order_and_a_preempted_request_ahead_of_them() -> None:
    table = table_of(
        {"score": 1.0, "sequence": 5},
        {"score": 1.0, "sequence": 4},
        {"score": 1.0, "sequence": -1},
        {"score": 0.5, "sequence": 9},
    )
    assert ordered(make_discipline("ltr"), table) == [3, 2, 1, 0]


def test_nan_ranks_last_and_does_not_disturb_the_others() -> None:
    table = table_of({"score": np.nan}, {"score": 3.0}, {"score": np.inf}, {"score": 2.0})
    assert ordered(make_discipline("ltr"), table) == [3, 1, 0, 2]


def test_priority_is_the_outermost_key_even_against_an_overdue_request() -> None:
    table = table_of({"priority": 1, "score": 0.0, "overtaken": 100}, {"priority": 0, "score": 9.0})
    assert ordered(make_discipline("ltr", max_overtakes=1), table) == [1, 0]


def test_an_admission_overtakes_those_who_arrived_before_it() -> None:
    table = table_of({"score": 9.0}, {"score": 8.0}, {"score": 1.0, "state": RUNNING}, {"score": 2})
    ordered(make_discipline("ltr"), table, admitted=[(2, 0)])
    assert table["overtaken"].tolist() == [1, 1, 0, 0]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-1, 1), min_size=1, max_size=20),
    st.lists(st.tuples(st.integers(0, 25), st.integers(-1, 2)), max_size=20),
)
def test_only_later_arrivals_of_its_own_class_or_a_lower_one_overtake_a_request(
    classes: list[int], admitted: list[tuple[int, int]]
) -> None:
    table = table_of(*({"priority": priority} for priority in classes))
    ordered(make_discipline("ltr"), table, admitted=admitted)
    for row, priority in enumerate(classes):
        overtakers = [who for who in admitted if who[0] > row and who[1] >= priority]
        assert table["overtaken"][row] == len(overtakers)


def test_from_the_bound_on_nobody_later_goes_first() -> None:
    discipline = make_discipline("ltr", max_overtakes=3)
    table = table_of({"score": 9.0, "overtaken": 2}, {"score": 8.0}, {"score": 1.0})
    assert ordered(discipline, table) == [2, 1, 0]
    assert ordered(discipline, table, admitted=[(7, 0)]) == [0, 2, 1]


def test_a_longer_queue_lets_more_go_first() -> None:
    discipline = make_discipline("ltr", max_overtakes=3, overtake_share=0.5)
    table = table_of({"score": 9.0, "overtaken": 4, "ahead": 4}, {"score": 8.0}, {"score": 1.0})
    assert ordered(discipline, table) == [2, 1, 0]
    assert ordered(discipline, table, admitted=[(7, 0)]) == [0, 2, 1]


def test_overdue_requests_run_in_order_of_arrival() -> None:
    discipline = make_discipline("sjf", max_wait_s=10.0)
    table = table_of(
        {"arrival_s": 5.0, "expected": 1.0},
        {"arrival_s": 0.0, "expected": 900.0, "arrival_index": 0, "sequence": 0},
        {"arrival_s": 1.0, "expected": 800.0, "arrival_index": 1, "sequence": 1},
    )
    assert ordered(discipline, table, now=9.0) == [0, 2, 1]
    assert ordered(discipline, table, now=12.0) == [1, 2, 0]


def test_starvation_promotes_in_the_order_of_the_policy() -> None:
    discipline = make_discipline("ltr", starvation_threshold=100)
    table = table_of(
        {"score": 1.0, "last_step": 450},
        {"score": 9.0, "last_step": 10},
        {"score": 8.0, "last_step": 400},
        {"score": 7.0, "last_step": 480, "promoted": 3},
    )
    assert ordered(discipline, table, step=500) == [3, 2, 1, 0]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.floats(0.0, 1.0), st.integers(0, 1000))
def test_a_blend_keeps_everyone_and_its_share(count: int, blend: float, admissions: int) -> None:
    by_arrival = np.arange(count)
    by_policy = by_arrival[::-1].copy()
    merged = interleave(by_policy, by_arrival, blend, admissions).tolist()
    assert sorted(merged) == list(range(count))
    # The longest queued of those left is admitted at every turn of fcfs, so the request at place
    # p waits for at most about p / (1 - blend) admissions.
    if blend < 1.0:
        assert merged.index(0) <= np.ceil(1.0 / (1.0 - blend))


def test_blend_zero_is_fcfs_and_one_is_the_policy() -> None:
    table = table_of({"score": 3.0}, {"score": 2.0}, {"score": 1.0})
    assert make_discipline("ltr", blend=0.0).is_fcfs
    assert ordered(make_discipline("ltr", blend=0.0), table) == [0, 1, 2]
    assert ordered(make_discipline("ltr", blend=1.0), table) == [2, 1, 0]
    assert ordered(make_discipline("ltr", blend=0.5), table) == [2, 0, 1]
