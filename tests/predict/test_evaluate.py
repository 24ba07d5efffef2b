"""Evaluation: what it breaks down, times and draws, and what leaving parts out shows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.predict import Prediction, PredictionError, Prompt, load_predictor
from lengthwise.predict.ablation import ABLATIONS, ablate
from lengthwise.predict.evaluate import (
    BATCH_SIZES,
    OTHER,
    Evaluation,
    Part,
    by_estimate,
    by_length,
    by_task,
    evaluate,
    latencies,
    plot_calibration,
    predict_timed,
    root_verb,
)
from lengthwise.predict.features import GROUP_NAMES
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from tests.support.answer_tables import SUBJECTS, TASKS, table

REFERENCE = load_tokenizer("reference")


def made_up(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Exponential lengths of a known mean, and true predictions of them."""
    random = np.random.default_rng(seed)
    mean = random.uniform(50, 500, count)
    quantiles = -np.log(1 - np.array([0.1, 0.5, 0.9]))
    predictions = np.column_stack([mean, mean, mean[:, np.newaxis] * quantiles])
    return np.ceil(random.exponential(mean)), predictions


@pytest.mark.parametrize(
    ("prompt", "verb"),
    [
        ("Write a poem.", "write"),
        ("Could you please write me a poem?", "write"),
        ("I'd like you to summarise this", "summarise"),
        ("What’s the capital of Peru?", "what's"),
        ("What is the capital?", "what"),
        ("Напиши рассказ", "напиши"),
        ("1 + 1 = ?", OTHER),
        ("", OTHER),
        ("Please!", OTHER),
    ],
)
def test_the_root_verb_says_what_is_asked_for(prompt: str, verb: str) -> None:
    assert root_verb(prompt) == verb


@given(st.text(max_size=600))
def test_any_text_has_a_root_verb(text: str) -> None:
    assert root_verb(text)


def test_rare_tasks_are_put_together() -> None:
    lengths, predictions = made_up(200)
    tasks = ["write"] * 100 + ["list"] * 60 + ["sing"] * 29 + ["hum"] * 11
    parts = by_task(tasks, lengths, predictions, np.arange(200), 0)
    assert [(part.name, part.rows) for part in parts] == [("write", 100), ("list", 60), (OTHER, 40)]
    assert parts[0].mean_length == lengths[:100].mean()
    for part in parts:
        assert part.tau is not None
        assert part.tau_low is not None
        assert part.tau_high is not None
        assert part.tau_low <= part.tau <= part.tau_high


def test_true_quantiles_are_seen_to_be_true() -> None:
    lengths, predictions = made_up(20_000)
    parts = by_estimate(lengths, predictions, np.arange(lengths.size), 0)
    assert [part.rows for part in parts] == [2_000] * 10
    for part in parts:
        assert part.below_low == pytest.approx(0.1, abs=0.03)
        assert part.below_median == pytest.approx(0.5, abs=0.04)
        assert part.above_high == pytest.approx(0.1, abs=0.03)
        assert part.coverage_80 == pytest.approx(0.8, abs=0.03)
        assert part.mean_length == pytest.approx(part.mean_expected, rel=0.1)


def test_tenths_go_from_short_to_long() -> None:
    lengths, predictions = made_up(95)
    means = [
        part.mean_length for part in by_length(lengths, predictions, np.arange(lengths.size), 0)
    ]
    assert means == sorted(means)
    assert len(means) == 10
    few = by_length(lengths[:3], predictions[:3], np.arange(3), 0)
    assert [part.rows for part in few] == [1, 1, 1]
    assert few[0].tau is None


def test_an_evaluation_has_all_its_parts() -> None:
    predictor = train(table(200), REFERENCE)
    result = evaluate(predictor, table(600, seed=1), REFERENCE)
    assert {part.name for part in result.tau_by_task} == {"write", "list", "true"}
    assert sum(part.rows for part in result.tau_by_decile) == 600
    assert [timed.batch for timed in result.latency] == list(BATCH_SIZES)
    for timed in result.latency:
        assert 0 < timed.microseconds_p50 <= timed.microseconds_p99
    assert 0 < result.microseconds_p50 <= result.microseconds_p99
    assert result.training_seconds == predictor.metadata.training.seconds


def test_answers_of_one_conversation_do_not_narrow_an_interval() -> None:
    """They are much alike: as many single answers would say far more."""
    random = np.random.default_rng(0)
    lengths = random.integers(20, 400, 30).repeat(10) + random.integers(0, 9, 300)
    rows = np.arange(1, 31).repeat(10)
    conversations = replace(
        table(300), lengths=lengths, rows=rows, tasks=["write"] * 300, samples=None
    )
    lone = replace(conversations, rows=np.arange(1, 301))
    predictor = load_predictor("noisy-oracle:0.5", tokenizer="reference")
    wide, narrow = (evaluate(predictor, each, REFERENCE) for each in (conversations, lone))
    assert width(wide) > 1.5 * width(narrow)
    assert width(wide.tau_by_task[0]) > 1.5 * width(narrow.tau_by_task[0])


def width(measured: Evaluation | Part) -> float:
    assert measured.tau_low is not None
    assert measured.tau_high is not None
    return measured.tau_high - measured.tau_low


def test_batches_larger_than_the_table_are_not_timed() -> None:
    prompts = [Prompt([1], {})] * 10
    assert [timed.batch for timed in latencies(load_predictor("prompt-length"), prompts)] == [1, 8]


def test_a_predictor_of_many_is_timed_on_many() -> None:
    class Together:
        name = "together"
        sizes: ClassVar[list[int]] = []

        def predict(self, prompt: Prompt) -> Prediction:
            raise PredictionError("one at a time")

        def predict_many(self, prompts: list[Prompt]) -> list[Prediction]:
            self.sizes.append(len(prompts))
            return [Prediction(1, 1, 1, 1, 1)] * len(prompts)

    predictor = Together()
    latencies(predictor, [Prompt([1], {})] * 64)
    assert set(predictor.sizes) == {1, 8, 64}
    predictions, _ = predict_timed(predictor, [Prompt([1], {})] * 3)
    assert np.isnan(predictions).all()


@pytest.mark.parametrize("name", ["p.svg", "p.png", "p.pdf"])
def test_calibration_is_drawn(tmp_path: Path, name: str) -> None:
    plot_calibration(by_estimate(*made_up(500), np.arange(500), 0), tmp_path / name)
    assert (tmp_path / name).stat().st_size > 1_000


def test_a_picture_that_cannot_be_drawn_is_one_line(tmp_path: Path) -> None:
    parts = by_estimate(*made_up(50), np.arange(50), 0)
    with pytest.raises(InputError, match="a picture is one of"):
        plot_calibration(parts, tmp_path / "p.txt")
    with pytest.raises(InputError, match="cannot write"):
        plot_calibration(parts, tmp_path / "none" / "p.svg")


def test_leaving_a_part_out_shows_what_it_is_worth() -> None:
    seen: list[str] = []
    found = ablate(
        ["rows", "features"],
        Recipe(seed=1),
        table(1_200),
        {"valid": table(300, seed=1), "test": table(300, seed=2)},
        REFERENCE,
        progress=lambda done, total, what: seen.append(what),
    )
    assert len(seen) == len(found)
    curve = [each for each in found if each.ablation == "rows"]
    assert [each.rows for each in curve] == [500, 1_000, 1_200]
    assert curve[-1].taus.keys() == {"valid", "test"}
    by_setting = {each.setting: each.taus["test"] for each in found if each.ablation == "features"}
    assert by_setting.keys() == {
        "all",
        *(f"without {name}" for name in GROUP_NAMES),
        *(f"{name} only" for name in GROUP_NAMES),
    }
    everything, without = by_setting["all"].tau, by_setting["without words"].tau
    assert everything is not None
    assert without == pytest.approx(everything, abs=0.1)  # pairs and places say the same
    assert by_setting["origin only"].tau is None  # the table has none


def test_lists_are_no_longer_than_the_table() -> None:
    settings = [variant.setting for variant in ABLATIONS["list-size"](Recipe(), 50, ())]
    assert settings == ["8", "16", "32"]


def test_an_unknown_ablation_is_refused_with_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'features'"):
        ablate(["feature"], Recipe(), table(50), {}, REFERENCE)


def test_subjects_do_not_matter() -> None:
    """What these tests rest on: every task is asked about every subject."""
    prompts = table(600).prompts
    for task in TASKS:
        assert all(
            any(task in each and subject in each for each in prompts) for subject in SUBJECTS
        )
