"""Ranking by time instead of tokens, on vLLM's real scheduler."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import CheckedEngine

LONG_PROMPT = list(range(2, 1602))


def engine(service_time: bool, policy: str = "sjf", **options: Any) -> CheckedEngine:
    settings = {"policy": policy, "predictor": "oracle", "service_time": service_time}
    scheduler = build_scheduler(
        Scheduler, lengthwise={"settings": settings}, **{"max_num_seqs": 1, **options}
    )
    return CheckedEngine(scheduler)


def ask(name: str, prompt: list[int], answer: int) -> Ask:
    return Ask(name, prompt, answer, hints={"lengthwise_true_tokens": answer})


def order_of(engine: CheckedEngine) -> list[str]:
    """What comes behind a request that holds the only slot."""
    engine.add(ask("first", [9] * 8, 4))
    engine.step()
    engine.add(ask("long prompt", LONG_PROMPT, 10))
    engine.add(ask("long answer", [7] * 8, 12))
    admitted = [name for step in engine.run() for name in step.admitted]
    return admitted[-2:]


@pytest.mark.parametrize("policy", ["sjf", "srpt", "trail", "gittins", "tie", "oracle"])
def test_a_long_prompt_counts_where_time_does(policy: str) -> None:
    assert order_of(engine(False, policy)) == ["long prompt", "long answer"]
    assert order_of(engine(True, policy)) == ["long answer", "long prompt"]


def test_what_is_cached_costs_nothing() -> None:
    warm = engine(True)
    warm.add(ask("before", LONG_PROMPT, 1))
    warm.run()
    assert order_of(warm) == ["long prompt", "long answer"]


@pytest.mark.parametrize("policy", ["fcfs", "ltr", "mlfq"])
def test_policies_that_rank_by_no_length_are_as_they_were(policy: str) -> None:
    assert order_of(engine(True, policy)) == order_of(engine(False, policy))


def test_costs_are_measured_where_something_depends_on_them() -> None:
    measured = engine(True)
    order_of(measured)
    assert measured.scheduler._planner.facts.step_time.times[0]["steps"] > 0
    unmeasured = engine(False, "shortest-prefill-first")
    order_of(unmeasured)
    assert unmeasured.scheduler._planner.facts.step_time.times[0]["steps"] == 0
