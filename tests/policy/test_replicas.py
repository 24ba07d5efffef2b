"""Routing over replicas: the compiled rule against one written again, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.replicas import (
    BOOKING,
    LEAST_OUTSTANDING,
    NOBODY,
    POWER_OF_TWO,
    PREDICTED_WAIT,
    ROUND_ROBIN,
    ROUTERS,
    Fleet,
    book,
    choose,
    hear,
    new_replicas,
    new_routers,
    predicted_wait,
    release,
)
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import simulate
from lengthwise.workload.arrivals import synthetic_trace
from tests.support.plain_replicas import PlainFleet, Sent

NOTHING = np.empty(0)


def fleet(replicas: int, slots: int, *, shortest_first: bool = False, rows: int = 64) -> Fleet:
    return Fleet(
        np.zeros(rows, BOOKING),
        new_replicas(replicas),
        new_routers(1, slots=slots, shortest_first=shortest_first),
    )


def chosen(known: Fleet, expected: float, now: float = 0.0, rule: int = PREDICTED_WAIT) -> int:
    return choose(known, rule, expected, NOTHING, 0, 0, 1, now)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_it_is_what_is_written_again(data: st.DataObject) -> None:
    """Any order of bookings, ends and news from others."""
    count, slots = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    shortest_first = data.draw(st.booleans())
    known = fleet(count, slots, shortest_first=shortest_first)
    plain = PlainFleet(count, slots, shortest_first)
    live: dict[int, Sent] = {}
    free = list(range(64))
    now = 0.0
    for _ in range(data.draw(st.integers(1, 40))):
        now += data.draw(st.sampled_from([0.0, 0.1, 1.0]))
        deed = data.draw(st.sampled_from(["send", "send", "end", "hear"]))
        if deed == "send":
            expected = data.draw(st.sampled_from([1.0, 7.0, 50.0, 400.0]))
            k = chosen(known, expected, now)
            assert k == plain.choose(expected, now)
            b = free.pop(data.draw(st.integers(0, len(free) - 1)))
            book(known, b, k, expected, now)
            live[b] = plain.book(k, expected, now)
        elif deed == "end" and live:
            b = data.draw(st.sampled_from(sorted(live)))
            release(known, b, now)
            plain.release(live.pop(b), now)
            free.append(b)
        elif deed == "hear":
            k, others = data.draw(st.integers(0, count - 1)), data.draw(st.integers(0, 5))
            hear(known, k, others, 30.0 * others, now)
            plain.hear(k, others, 30.0 * others, now)
        for k in range(count):
            assert predicted_wait(known, k, 20.0, now) == pytest.approx(plain.wait(k, 20.0, now))
            assert known.replicas["count"][k] == len(plain.sent[k])


def test_a_long_answer_takes_one_slot_and_not_the_whole_replica() -> None:
    """By booked work the second replica would get everything; in truth the first has free slots."""
    known = fleet(2, slots=4)
    book(known, 0, 0, 5_000.0, 0.0)
    for b in range(1, 5):
        book(known, b, 1, 10.0, 0.0)
    assert chosen(known, 10.0, rule=ROUTERS.index("least-predicted-work")) == 1
    assert chosen(known, 10.0) == 0


def test_a_length_aware_replica_makes_short_requests_wait_for_short_ones_only() -> None:
    for shortest_first, where in ((False, 1), (True, 0)):
        known = fleet(2, slots=1, shortest_first=shortest_first)
        for b, (k, expected) in enumerate([(0, 10.0), (0, 900.0), (1, 10.0), (1, 20.0), (1, 20.0)]):
            book(known, b, k, expected, 0.0)
        assert chosen(known, 15.0) == where or not shortest_first
        waits = [predicted_wait(known, k, 30.0, 0.0) for k in range(2)]
        assert int(np.argmin(waits)) == where


def test_where_all_are_full_long_requests_keep_each_other_company() -> None:
    known = fleet(2, slots=1)
    for b in range(40):  # what is usual here
        book(known, b, 0, 10.0, 0.0)
        release(known, b, 0.2)
    book(known, 0, 0, 500.0, 0.2)
    book(known, 1, 1, 10.0, 0.2)
    assert chosen(known, 10.0, 0.2) == 1
    assert chosen(known, 400.0, 0.2) == 1  # too far behind the other long one
    assert chosen(known, 900.0, 0.2) == 0


def test_a_seen_prefix_counts_as_much_as_it_saves() -> None:
    known = fleet(2, slots=1)
    book(known, 0, 0, 100.0, 0.0)
    for saved_s, where in ((0.0, 1), (0.5, 1), (9.0, 0)):
        assert choose(known, PREDICTED_WAIT, 10.0, np.array([saved_s, 0.0]), 0, 0, 1, 0.0) == where


@pytest.mark.parametrize("rule", range(len(ROUTERS)))
def test_a_closed_replica_gets_nothing(rule: int) -> None:
    known = fleet(3, slots=1)
    book(known, 0, 2, 100.0, 0.0)
    known.replicas["open"][:2] = False
    assert chosen(known, 10.0, rule=rule) == 2
    known.replicas["open"] = False
    assert chosen(known, 10.0, rule=rule) == NOBODY


def test_plain_rules() -> None:
    known = fleet(3, slots=2)
    for b, k in enumerate([0, 0, 1, 2, 2]):
        book(known, b, k, 10.0, 0.0)
    assert chosen(known, 10.0, rule=LEAST_OUTSTANDING) == 1
    assert choose(known, ROUND_ROBIN, 10.0, NOTHING, 5, 0, 1, 0.0) == 2
    assert choose(known, POWER_OF_TWO, 10.0, NOTHING, 0, 0, 2, 0.0) == 0
    hear(known, 1, 5, 50.0, 0.0)
    assert chosen(known, 10.0, rule=LEAST_OUTSTANDING) == 0


@pytest.mark.parametrize("policy", ["fcfs", "srpt"])
def test_predicted_wait_beats_power_of_two(policy: str) -> None:
    """Skewed lengths, a load of 0.9, three engines."""
    rate = 0.9 * 3 * 2 / (100 * 1e-2)
    trace = synthetic_trace(3_000, rate, mean_prompt=10, mean_output=100, sigma=1.8, seed=1)
    lengths = trace.output_tokens.astype(float)
    said = np.stack([lengths] * 5, axis=1)
    mean = {
        router: simulate(
            trace,
            make_discipline(policy),
            StepCost(1e-2, 0.0, 0.0),
            EngineSettings(slots=2),
            predictions=said,
            replicas=3,
            router=router,
        ).e2el_s.mean()
        for router in ("power-of-two", "predicted-wait")
    }
    assert mean["predicted-wait"] < (0.85 if policy == "fcfs" else 0.95) * mean["power-of-two"]


def test_many_routers_with_old_news_herd_and_drawing_two_helps() -> None:
    """Whoever seemed the least loaded is everybody's choice until the next news."""
    trace = synthetic_trace(2_000, 60.0, mean_prompt=10, mean_output=100, sigma=1.0, seed=1)
    lengths = trace.output_tokens.astype(float)

    def mean(router: str, routers: int, stale_s: float) -> float:
        served = simulate(
            trace,
            make_discipline("fcfs"),
            StepCost(1e-2, 0.0, 0.0),
            EngineSettings(slots=8),
            predictions=np.stack([lengths] * 5, axis=1),
            replicas=10,
            router=router,
            routers=routers,
            stale_s=stale_s,
        )
        return float(served.e2el_s.mean())

    fresh, stale = mean("least-outstanding", 1, 0.0), mean("least-outstanding", 16, 5.0)
    assert stale > 1.2 * fresh
    assert mean("power-of-two", 16, 5.0) < stale
    assert mean("predicted-wait-of-two", 16, 5.0) < mean("predicted-wait", 16, 5.0)
    assert mean("round-robin", 1, 0.0) == mean("round-robin", 16, 5.0)
