"""Pauses on a real engine: the built-in model's answers are those without, token by token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.emulate.driver import Asked
from lengthwise.emulate.forward_engine import BLOCK_SIZE, ComputedModel, open_forward_engine
from lengthwise.predict.load import PREDICTION
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.reference import model_path
from lengthwise.reference.prompts import generate
from lengthwise.simulate.engine import EngineSettings
from lengthwise.simulate.presets import preset

COST = preset("a100", "llama-3-8b").cost
REQUESTS = 200
ENGINE = EngineSettings(slots=4, max_seqs=32, token_budget=64, block_size=BLOCK_SIZE)
PAUSING = {
    "policy": "srpt",
    "predictor": "foretold",
    "preemption": "greedy",
    "pausing": True,
    "max_stall_s": 1.0,
    "max_overtakes": None,
    "tau_floor": None,
}


def asked() -> list[Asked]:
    texts = [prompt.text for prompt in generate(REQUESTS, 0)]
    return [
        Asked(
            ids,
            None,
            arrival_s=0.05 * place,
            # In every order but that of arrival, and often wrong.
            hints={PREDICTION: [0.0, *4 * [float(1 + 37 * place % 90)]]},
            seed=place,
            most_tokens=80,
        )
        for place, ids in enumerate(load_tokenizer("reference").encode_chat_many(texts))
    ]


def answers(engine: EngineSettings, settings: dict[str, Any]) -> tuple[list[list[int]], Any]:
    """Every request's tokens, and the scheduler's counters."""
    model = ComputedModel(model_path(), "float32")
    with open_forward_engine(model, COST, engine, longest=512, settings=settings) as virtual:
        requests: list[Any] = []
        add = virtual._add

        def keep(name: str, one: Asked) -> Any:
            requests.append(add(name, one))
            return requests[-1]

        virtual._add = keep  # type: ignore[method-assign]
        virtual.run(asked())
        tokens = [list(request.output_token_ids) for request in requests]
        return tokens, virtual.scheduler.counters


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("lag", [0, 1])
def test_every_answer_is_that_of_stock(lag: int) -> None:
    engine = replace(ENGINE, lag=lag)
    stock, _ = answers(engine, {"policy": "fcfs"})
    paused, counters = answers(engine, PAUSING)
    assert counters.pauses > 30
    assert counters.preemptions == counters.memory_preemptions == counters.recomputed_tokens == 0
    assert [len(each) for each in paused] == [len(each) for each in stock]
    assert paused == stock
