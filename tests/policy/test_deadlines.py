"""Deadlines of first tokens: the rank, what it is worth under overload, and the hint in vLLM."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bench.deadlines import measurements
from lengthwise.policy import get_policy
from lengthwise.policy.discipline import make_discipline
from lengthwise.request import RUNNING, WAITING, new_table
from lengthwise.simulate import simulate
from lengthwise.simulate.predictions import trace_predictions
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.arrivals import synthetic_trace


def rank(**fields: Any) -> float:
    table = new_table(1)
    for name, value in {"state": WAITING, "remaining": 100.0, **fields}.items():
        table[name] = value
    policy = get_policy("deadline")
    return float(policy.rank(table[0], 0.0, policy.parameter_record({})[0]))


def test_a_deadline_that_comes_near_moves_to_the_front() -> None:
    assert rank() == 100.0
    assert rank(deadline_s=2.0) == 100.0
    assert rank(deadline_s=2.0, wait_s=1.5) == 25.0
    assert rank(deadline_s=2.0, wait_s=2.0 - 1e-9) < 1e-6
    # As it runs out the length means less and less, and the queue's own order more.
    assert rank(deadline_s=2.0, wait_s=1.5, remaining=900.0) == 9 * 25.0
    assert rank(deadline_s=2.0, wait_s=2.0 - 1e-9, remaining=900.0) < 1e-5


def test_a_deadline_that_is_met_or_missed_counts_no_longer() -> None:
    assert rank(deadline_s=2.0, wait_s=1.5, age=1, state=RUNNING) == 100.0
    assert rank(deadline_s=2.0, wait_s=1.5, age=1) == 100.0
    assert rank(deadline_s=2.0, wait_s=2.0) == 100.0
    assert rank(deadline_s=2.0, wait_s=9.0) == 100.0


@pytest.mark.parametrize("seed", [0, 1])
def test_more_deadlines_are_met_than_by_fcfs_and_the_mean_is_no_worse(seed: int) -> None:
    fcfs, srpt, ours = measurements(seed)
    assert (fcfs["policy"], srpt["policy"], ours["policy"]) == ("fcfs", "srpt", "deadline")
    assert ours["met"] >= 1.3 * fcfs["met"]
    assert ours["met"] > srpt["met"]
    assert ours["mean_e2el_s"] <= fcfs["mean_e2el_s"]


def test_other_policies_do_not_look_at_deadlines() -> None:
    trace = synthetic_trace(50, 5.0, mean_prompt=20, mean_output=20, sigma=0.5, seed=1)
    preset = parse_preset("a100:llama-3-8b")
    with_them, without = (
        simulate(
            trace,
            make_discipline("srpt"),
            preset.cost,
            replace(preset.engine, slots=2),
            predictions=trace_predictions(trace, "oracle"),
            deadline_s=deadlines,
        ).requests["finish_s"]
        for deadlines in (np.ones(50), None)
    )
    assert with_them.tolist() == without.tolist()


@pytest.mark.parametrize(
    ("hint", "first"),
    [
        (100, "long"),
        ("100", "long"),
        (None, "short"),
        ("soon", "short"),
        (-1, "short"),
        (float("nan"), "short"),
        ("1e400", "short"),
        ([100], "short"),
    ],
)
def test_the_hint_moves_a_waiting_request_in_vllm(hint: object, first: str) -> None:
    pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")
    from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
    from lengthwise.vllm import Scheduler

    settings = {"policy": "deadline", "predictor": "declared", "preemption": "never"}
    scheduler = build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": settings})
    now = [0.0]
    scheduler.begin_anew(lambda: now[0])
    engine = SteppedEngine(scheduler)

    def add(name: str, tokens: int, **more: object) -> None:
        hints = {"lengthwise_expected_tokens": tokens, **more}
        engine.add(Ask(name, [7] * 8, tokens, hints=hints))

    add("runs", 3)
    engine.step()
    add("long", 400, **({} if hint is None else {"lengthwise_ttft_deadline_ms": hint}))
    add("short", 10)
    now[0] = 0.099
    admitted = [request_id for step in engine.run() for request_id in step.admitted]
    assert admitted[0] == first
    assert set(engine.finished) == {"runs", "long", "short"}
