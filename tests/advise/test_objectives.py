"""What a tuner is asked for: what is to become better, and what may not become worse."""

from __future__ import annotations

import pytest

from lengthwise.advise.tune import (
    LATENCIES,
    MAX_WAIT,
    MOST_S,
    OBJECTIVES,
    Cap,
    gain,
    orders,
    parse_caps,
    require_objective,
)
from lengthwise.errors import InputError
from lengthwise.settings import parse_settings


def test_caps_are_read() -> None:
    caps = parse_caps(["p99-e2el=1.1", "max-wait-s=30"])
    assert caps == [Cap("p99-e2el", 1.1), Cap("max-wait-s", 30.0)]
    assert [str(cap) for cap in caps] == ["p99-e2el ≤ 1.1 × fcfs", "max-wait ≤ 30 s"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("p99-e2e=1.1", "did you mean 'p99-e2el'?"),
        ("latency=1", "max-wait-s, mean-e2el"),
        ("p99-e2el", "times the figure of fcfs"),
        ("p99-e2el=0", "above 0"),
        ("p99-e2el=-1", "above 0"),
        ("p99-e2el=inf", "above 0"),
        ("max-wait-s=long", "in seconds"),
        ("max-wait-s=1e10", "at most 1,000,000,000 seconds"),
    ],
)
def test_a_wrong_cap_is_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message.replace("?", r"\?")):
        parse_caps([text])


def test_the_guard_of_any_cap_on_waiting_is_one_that_settings_take() -> None:
    (cap,) = parse_caps([f"{MAX_WAIT}={MOST_S}"])
    (guard,) = {
        each.guards["max_wait_s"] for each in orders(8, [cap]) if "max_wait_s" in each.guards
    }
    assert parse_settings({"max_wait_s": guard}).max_wait_s == guard


def test_a_cap_twice_and_an_unknown_objective_are_refused() -> None:
    with pytest.raises(InputError, match="twice"):
        parse_caps(["p99-e2el=1.1", "p99-e2el=1.2"])
    with pytest.raises(InputError, match="goodput, mean-e2el"):
        require_objective("throughput")


def test_gains_and_caps_by_hand() -> None:
    fcfs = dict.fromkeys(LATENCIES.values(), 200.0)
    fcfs |= {"request_goodput": 2.0, "duration": 10.0, "max_waiting_time_ms": 9000.0}
    policy = dict.fromkeys(LATENCIES.values(), 160.0)
    policy |= {"request_goodput": 3.0, "duration": 10.0, "max_waiting_time_ms": 12000.0}
    for objective in OBJECTIVES:
        assert gain(objective, policy, fcfs) == (1.5 if objective == "goodput" else 1.25)
    assert gain("goodput", policy, {**fcfs, "request_goodput": 0.0}) == pytest.approx(30.0)
    assert Cap("p99-e2el", 1.1).measured(policy, fcfs) == 0.8
    assert Cap(MAX_WAIT, 30.0).measured(policy, fcfs) == 12.0
