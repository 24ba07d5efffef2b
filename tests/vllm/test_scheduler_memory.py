"""Admission that looks ahead, on vLLM's real scheduler with few KV blocks."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import AnyText, CheckedEngine


def engine(policy: str = "sjf", growth: float = 1.0, lag: int = 0, **options: Any) -> CheckedEngine:
    settings = {
        "policy": policy,
        "memory_growth": growth,
        "predictor": None if policy == "fcfs" else "declared",
    }
    options = {"num_blocks": 25, "max_num_seqs": 8, **options}
    scheduler = build_scheduler(
        Scheduler, asynchronous=bool(lag), lengthwise={"settings": settings}, **options
    )
    return CheckedEngine(scheduler, lag)


def ask(name: str, answer: int, expected: float | None = None, **options: Any) -> Ask:
    hints = {"lengthwise_expected_tokens": answer if expected is None else expected}
    return Ask(name, [ord(name[0])] * 8, answer, hints=hints, **options)


def serve_a_burst(served: CheckedEngine, error: float) -> int:
    """How often memory ran out while forty requests were served."""
    generator = random.Random(0)
    for number in range(40):
        answer = generator.randint(20, 150)
        expected = answer * generator.lognormvariate(0.0, error)
        served.add(ask(f"r{number}", answer, expected))
    served.drain()
    return int(served.scheduler.counters.memory_preemptions)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("policy", ["sjf", "srpt"])
def test_memory_runs_out_less_often(policy: str, lag: int) -> None:
    stock = serve_a_burst(engine("fcfs", lag=lag), 0.0)
    assert stock > 20
    assert serve_a_burst(engine(policy, lag=lag), 0.0) <= 0.1 * stock
    assert serve_a_burst(engine(policy, lag=lag), 0.4) <= 0.5 * stock


def test_what_is_predicted_too_long_is_served_all_the_same() -> None:
    served = engine()
    for name in ("one", "two", "three"):
        served.add(ask(name, 10, expected=100_000.0))
    served.drain()
    assert set(served.finished.values()) == {"stop"}


def test_alone_in_an_empty_engine_the_first_is_let_in_and_no_more() -> None:
    served = engine()
    served.add(ask("one", 150, expected=380.0))
    served.add(ask("two", 150, expected=390.0))
    assert served.step().admitted == ("one",)
    served.drain()


def test_one_that_cannot_run_does_not_hold_back_those_behind() -> None:
    served = engine()
    blocked = served.add(ask("blocked", 10, expected=390.0, structured=True))
    served.add(ask("ready", 20, expected=395.0))
    assert served.step().admitted == ("ready",)
    blocked.structured_output_request.grammar = AnyText()
    served.drain()


def test_fcfs_does_not_look_ahead() -> None:
    assert engine("fcfs").scheduler._planner.discipline.needs_predictions is False
