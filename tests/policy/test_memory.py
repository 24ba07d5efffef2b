"""Admission that looks ahead: the predicted peak of memory, against simulation by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.policy.facts import RUNNER
from lengthwise.policy.length_law import cumulative_hazard
from lengthwise.policy.memory import fitting
from lengthwise.request import RUNNING, WAITING, RequestTable, new_table

Request = tuple[int, int, int]  # prompt, age, tokens to come

counts = st.integers(1, 200)
some = st.lists(st.tuples(counts, st.integers(0, 100), counts), min_size=1, max_size=8)


def table_of(running: Sequence[Request], waiting: Sequence[Request]) -> RequestTable:
    """Requests whose lengths are known for sure."""
    table = new_table(len(running) + len(waiting))
    for row, (prompt, age, left) in zip(table, [*running, *waiting], strict=True):
        row["prompt_tokens"], row["age"], row["remaining"] = prompt, age, left
        for name in ("expected", "low", "median", "high"):
            row[name] = age + left
    table["state"][: len(running)], table["state"][len(running) :] = RUNNING, WAITING
    table["computed_tokens"][: len(running)] = [prompt + age for prompt, age, _ in running]
    return table


def fit(table: RequestTable, free: int, growth: float = 1.0, block_size: int = 1) -> int:
    rows = np.arange(len(table))
    runners = np.zeros(int((table["state"] == RUNNING).sum()), RUNNER)
    runners["row"] = rows[table["state"] == RUNNING]
    runners["computed_tokens"] = table["computed_tokens"][runners["row"]]
    waiting = rows[table["state"] == WAITING]
    return fitting(table, runners, waiting, growth, free, block_size)


def peak(requests: Sequence[Request]) -> int:
    """Tokens in use at the worst moment, token by token."""
    last = max(left for _, _, left in requests)
    return max(
        sum(prompt + age + t for prompt, age, left in requests if t <= left)
        for t in range(1, last + 1)
    )


@settings(deadline=None)
@given(some, some, st.integers(0, 3000))
def test_sure_lengths_are_admitted_as_far_as_their_peak_fits(
    running: list[Request], waiting: list[Request], free: int
) -> None:
    room = free + sum(prompt + age for prompt, age, _ in running)
    expected = 0
    while expected < len(waiting) and peak([*running, *waiting[: expected + 1]]) <= room:
        expected += 1
    assert fit(table_of(running, waiting), free) == expected


def test_releases_along_the_way_count() -> None:
    """Three that end one after the other need less than three that end together."""
    together, staggered = [(10, 0, 90)] * 3, [(10, 0, 30), (10, 0, 60), (10, 0, 90)]
    assert peak(together) > peak(staggered)
    assert fit(table_of(together[:1], together[1:]), peak(staggered) - 10) == 0
    assert fit(table_of(staggered[:1], staggered[1:]), peak(staggered) - 10) == 2


def test_growth_scales_what_is_to_come() -> None:
    table = table_of([(10, 0, 40)], [(10, 0, 40)])
    assert fit(table, 100 - 10, 1.0) == 1
    assert fit(table, 100 - 11, 1.0) == 0
    assert fit(table, 60 - 10, 0.5) == 1
    assert fit(table, 180 - 11, 2.0) == 0


def test_whole_blocks_are_counted() -> None:
    table = table_of([(17, 0, 1)], [(15, 0, 1)])
    assert fit(table, 1, block_size=16) == 1
    assert fit(table, 0, block_size=16) == 0


def test_where_nothing_runs_the_first_is_let_in() -> None:
    alone = table_of([], [(100, 0, 900), (10, 0, 10)])
    assert fit(alone, 50) == 1
    assert fit(table_of([(1, 0, 1)], [(100, 0, 900)]), 50) == 0


@pytest.mark.parametrize("count", [6, 20, 60])
def test_under_doubt_the_peak_is_the_upper_tenth_of_what_may_be_in_use(count: int) -> None:
    """Answers drawn from the predicted laws: how much they hold at its worst moment."""
    generator = np.random.default_rng(count)
    table = new_table(count)
    table["state"] = WAITING
    table["prompt_tokens"] = generator.integers(5, 100, count)
    table["median"] = generator.lognormal(4.5, 0.5, count)
    table["low"], table["high"] = 0.5 * table["median"], 2.5 * table["median"]
    table["expected"] = table["remaining"] = 1.3 * table["median"]
    instants = np.arange(1, 600)
    use = np.zeros((2000, len(instants)))
    for row in table:
        law = [float(row[name]) for name in ("expected", "low", "median", "high")]
        alive = np.exp([-cumulative_hazard(*law, float(t)) for t in instants])
        ends = generator.random((len(use), 1))  # ends later than t where the draw is below
        use += (ends < alive) * (row["prompt_tokens"] + instants)
    likely = float(np.quantile(use, 0.9, axis=0).max())
    least = next(free for free in range(10**6) if fit(table, free) == count)
    assert least == pytest.approx(likely, rel=0.08)


def test_doubt_needs_less_room_than_all_reaching_their_mean_at_once() -> None:
    table = table_of([], [(10, 0, 100)] * 30)
    sure = next(free for free in range(10**5) if fit(table, free) == 30)
    table["low"], table["median"], table["high"] = (-100 * math.log(x) for x in (0.9, 0.5, 0.1))
    doubtful = next(free for free in range(10**5) if fit(table, free) == 30)
    assert doubtful < 0.75 * sure
