"""A request's `max_tokens` bounds what is believed of its answer, in ranks and in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.vllm import Scheduler
from tests.support.answer_tables import table


def engine_of(slots: int, **settings: Any) -> SteppedEngine:
    return SteppedEngine(
        build_scheduler(
            Scheduler,
            max_num_seqs=slots,
            num_blocks=2000,
            lengthwise={"settings": {"tau_floor": None, "max_overtakes": None, **settings}},
        )
    )


def said(tokens: float) -> dict[str, object]:
    return {"lengthwise_expected_tokens": tokens}


@pytest.mark.parametrize("policy", ["sjf", "ltr", "srpt", "trail", "gittins", "tie"])
@pytest.mark.parametrize("ignore_eos", [False, True])
def test_an_answer_that_is_cut_early_is_a_short_one(policy: str, ignore_eos: bool) -> None:
    engine = engine_of(1, policy=policy, predictor="declared", preemption="never")
    engine.add(Ask("running", [7] * 8, 30, hints=said(30)))
    engine.step()
    engine.add(Ask("cut", [7] * 8, 300, max_tokens=5, ignore_eos=ignore_eos, hints=said(300)))
    for number in range(8):
        engine.add(Ask(f"r{number}", [7] * 8, 20, hints=said(100)))
    engine.run()
    # Where every answer is as long as `max_tokens`, it is a replay's way to say its length.
    assert list(engine.finished).index("cut") == (9 if ignore_eos else 1)


def test_scores_that_are_no_lengths_are_cut_at_the_score_of_that_length(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("reference")
    rows = table(600)
    train(rows, tokenizer, Recipe(seed=1)).save(tmp_path / "p")
    longest = rows.prompts[int(rows.lengths.argmax())]
    shortest = rows.prompts[int(rows.lengths.argmin())]
    engine = engine_of(1, policy="ltr", predictor=str(tmp_path / "p"), preemption="never")
    long, short = tokenizer.encode_chat(longest), tokenizer.encode_chat(shortest)
    engine.add(Ask("running", [7] * 8, 30))
    engine.step()
    engine.add(Ask("long", long, 9))
    engine.add(Ask("short", short, 9))
    engine.add(Ask("long, cut", long, 9, max_tokens=1))
    engine.run()
    assert list(engine.finished) == ["running", "long, cut", "short", "long"]


@pytest.mark.parametrize("claim", [40, 1_000_000])
def test_memory_is_not_kept_for_what_cannot_be_answered(claim: int) -> None:
    engine = engine_of(16, policy="sjf", predictor="declared", memory_growth=1.0)
    engine.add(Ask("odd", [7] * 8, 400, max_tokens=40, hints=said(claim)))
    engine.step()
    for number in range(30):
        engine.add(Ask(f"r{number}", [7] * 8, 10, hints=said(10)))
    for _ in range(38):
        engine.step()
    assert len(engine.finished) == 30
