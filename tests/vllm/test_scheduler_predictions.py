"""What a step reads to predict is bounded, and every request's prediction is accounted for."""

from __future__ import annotations

import os
import signal
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.policy.length_law import PER_STEP, READ, READ_PER_STEP
from lengthwise.predict.extract import token_text_of
from lengthwise.predict.features import find_features, new_scratch
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import PredictionError, Predictor
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.reference import model_path
from lengthwise.settings import parse_settings
from lengthwise.vllm import Scheduler
from lengthwise.vllm.compat.requests import prompt_of
from tests.support.checked_engine import CheckedEngine
from tests.support.slow_predictor import Slow, worker_pid

LONG = READ + 500
DECLARED = {"lengthwise_expected_tokens": 7}


@pytest.mark.parametrize(
    ("prompt", "in_one_step"), [(LONG, READ_PER_STEP // READ), (8, PER_STEP), (3_000 // 16, 88)]
)
def test_a_step_predicts_as_much_as_it_may_read(prompt: int, in_one_step: int) -> None:
    settings = {"policy": "sjf", "predictor": "declared", "tau_floor": None}
    engine = CheckedEngine(build_scheduler(Scheduler, lengthwise={"settings": settings}))
    for number in range(2 * in_one_step):
        engine.add(Ask(f"r{number}", [7] * prompt, 3, hints=DECLARED))
    predicted = []
    for _ in range(3):
        engine.step()
        predicted.append(engine.scheduler.counters.predictions)
    assert predicted == [in_one_step, 2 * in_one_step, 2 * in_one_step]
    engine.drain()


def embedded(positions: int, **hints: object) -> Any:
    """A request whose prompt is given as embeddings."""
    import torch
    from vllm import SamplingParams
    from vllm.v1.request import Request

    return Request(
        "embedded",
        None,
        SamplingParams(extra_args=hints),
        None,
        prompt_embeds=torch.zeros(positions, 4),
    )


@pytest.mark.parametrize("positions", [9, 3 * READ])
def test_embeddings_are_no_empty_prompt(positions: int) -> None:
    prompt = prompt_of(embedded(positions, **DECLARED))
    assert load_predictor("prompt-length").predict(prompt).expected == positions
    assert load_predictor("declared").predict(prompt).expected == 7
    text = token_text_of(load_tokenizer(str(model_path())))
    with pytest.raises(PredictionError, match="embeddings"):
        find_features(prompt.token_ids, text.vocabulary, text.template, new_scratch())


def test_requests_that_a_slow_predictor_never_saw_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(spec: str, tokenizer: str | None = None) -> Predictor:
        return Slow() if spec == "prompt-length" else load_predictor(spec)

    monkeypatch.setattr("lengthwise.vllm.live_settings.load_predictor", loaded)
    settings = {"policy": "sjf", "predictor": "prompt-length"}
    scheduler = build_scheduler(Scheduler, lengthwise={"settings": settings})
    engine = CheckedEngine(scheduler)
    os.kill(worker_pid(engine), signal.SIGSTOP)
    for number in range(300):
        engine.add(Ask(f"r{number}", [7] * 5, 2))
    engine.abort([f"r{number}" for number in range(100, 200)])
    engine.drain()
    assert scheduler.counters.unpredicted == 300
    # A change of the predictor asks anew about those that are there.
    engine.add(Ask("last", [7] * 5, 2, hints=DECLARED))
    engine.step()
    os.kill(worker_pid(engine), signal.SIGCONT)
    engine.drain()
    counters = scheduler.counters
    assert counters.predictions + counters.fallbacks + counters.unpredicted == 301
    scheduler.shutdown()


@pytest.mark.parametrize("preemption", ["pays", "greedy"])
@pytest.mark.parametrize("off", [False, True])
def test_where_nothing_is_predicted_nobody_makes_way_for_who_came_under_fcfs(
    off: bool, preemption: str
) -> None:
    """Some came while the policy was another one, or switched off: all look alike after it, too."""
    settings = {"policy": "srpt", "predictor": "none", "preemption": preemption}
    before = settings if off else {"policy": "fcfs"}
    scheduler = build_scheduler(Scheduler, max_num_seqs=2, lengthwise={"settings": before})
    scheduler.switch_off(off)
    engine = SteppedEngine(scheduler)
    for number in range(6):
        engine.add(Ask(f"r{number}", [5 + number] * 20, answer=60))
    for _ in range(10):
        engine.step()
    scheduler.switch_off(False)
    scheduler.apply_now(parse_settings(settings))
    for number in range(6, 9):
        engine.add(Ask(f"r{number}", [5 + number] * 20, answer=60))
    admitted = [name for step in engine.run() for name in step.admitted]
    assert admitted == [f"r{number}" for number in range(2, 9)]
    assert scheduler.counters.preemptions == 0
