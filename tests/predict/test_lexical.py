"""The lexical predictor: what it learns, how it is kept on disk, and what it refuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from lengthwise.errors import InputError
from lengthwise.predict import Prompt, load_predictor
from lengthwise.predict.evaluate import evaluate
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.lexical import LexicalPredictor
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train as train_by
from lengthwise.workload.dataset import Dataset
from tests.support.answer_tables import SPREAD, TASKS, table

REFERENCE = load_tokenizer("reference")


def train(dataset: Dataset, **recipe: Any) -> LexicalPredictor:
    predictor = train_by(dataset, REFERENCE, Recipe(**recipe))
    assert isinstance(predictor, LexicalPredictor)
    return predictor


@pytest.fixture(scope="module")
def predictor() -> LexicalPredictor:
    return train(table(600), seed=1)


@pytest.fixture
def artifact(predictor: LexicalPredictor, tmp_path: Path) -> Path:
    predictor.save(tmp_path / "p")
    return tmp_path / "p"


def expected(predictor: LexicalPredictor, text: str) -> float:
    return predictor.predict(Prompt(REFERENCE.encode_chat(text), {})).expected


def test_it_learns_which_task_takes_long(predictor: LexicalPredictor) -> None:
    for task, mean in TASKS.items():
        length = expected(predictor, f"{task} bees and winter")
        assert length == pytest.approx(mean * np.exp(SPREAD**2 / 2), rel=0.25)


def test_it_is_good_on_rows_that_it_has_not_seen(predictor: LexicalPredictor) -> None:
    fresh = table(800, seed=9, samples=3)
    result = evaluate(predictor, fresh, REFERENCE)
    assert result.tau is not None
    assert result.ceiling_tau is not None
    assert result.resample_tau is not None
    assert result.tau_low is not None
    assert result.tau_high is not None
    # Subjects do not matter, so knowing the task is all that can be known.
    assert result.resample_tau < result.ceiling_tau
    assert result.tau > result.ceiling_tau - 0.06
    assert result.tau_low < result.tau < result.tau_high
    assert result.coverage_80 == pytest.approx(0.8, abs=0.07)
    assert result.below_low + result.coverage_80 + result.above_high == pytest.approx(1)
    assert result.mean_expected == pytest.approx(result.mean_length, rel=0.1)
    assert result.unpredicted == 0


def test_what_it_says_of_itself_was_held_out(predictor: LexicalPredictor) -> None:
    fresh = evaluate(predictor, table(800, seed=9), REFERENCE)
    held_out = predictor.metadata.held_out
    assert held_out.rows == 600
    assert held_out.tau == pytest.approx(fresh.tau, abs=0.06)
    assert held_out.mae == pytest.approx(fresh.mae, rel=0.25)
    assert held_out.coverage_80 == pytest.approx(0.8, abs=0.08)


def test_rows_with_many_answers_are_calibrated_on_all_of_them() -> None:
    several = train(table(300, samples=5))
    assert several.metadata.training.answers == 1_500
    result = evaluate(several, table(500, seed=2), REFERENCE)
    assert result.coverage_80 == pytest.approx(0.8, abs=0.07)


def test_the_same_seed_gives_the_same_predictor(predictor: LexicalPredictor) -> None:
    again = train(table(600), seed=1)
    assert np.array_equal(again.parameters.model.weights, predictor.parameters.model.weights)
    assert np.array_equal(again.parameters.calibration, predictor.parameters.calibration)


def test_progress_only_grows() -> None:
    parts: list[float] = []
    train_by(table(60), REFERENCE, progress=lambda stage, part: parts.append(part))
    assert parts == sorted(parts)
    assert parts[-1] == 1


@settings(deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), max_size=40))
def test_any_prompt_gets_an_ordered_prediction(
    predictor: LexicalPredictor, token_ids: list[int]
) -> None:
    prediction = predictor.predict(Prompt(token_ids, {}))
    assert np.isfinite(prediction).all()
    assert 1 <= prediction.low <= prediction.median <= prediction.high
    assert predictor.predict(Prompt(token_ids, {})) == prediction


def test_a_prediction_does_not_depend_on_those_before(predictor: LexicalPredictor) -> None:
    prompt = Prompt(REFERENCE.encode_chat("List some facts on tea"), {})
    first = predictor.predict(prompt)
    predictor.predict(Prompt(list(range(1_000)), {}))
    assert predictor.predict(prompt) == first


@pytest.mark.parametrize("count", [1, 19])
def test_too_few_rows_are_refused(count: int) -> None:
    with pytest.raises(InputError, match="needs at least 20"):
        train(table(count))


def test_answers_that_are_all_equal_are_refused() -> None:
    rows = table(50)
    rows.lengths[:] = 7
    with pytest.raises(InputError, match="nothing to learn"):
        train(rows)


def test_an_artifact_predicts_as_what_was_saved(
    predictor: LexicalPredictor, artifact: Path
) -> None:
    loaded = load_predictor(str(artifact), tokenizer="reference")
    for text in ("Write an essay about bees", "", "Is it true? " * 700):
        prompt = Prompt(REFERENCE.encode_chat(text), {})
        assert loaded.predict(prompt) == predictor.predict(prompt)
    assert isinstance(loaded, LexicalPredictor)
    assert loaded.metadata == predictor.metadata


def test_an_artifact_explains_itself_and_holds_no_prompts(artifact: Path) -> None:
    assert {path.name for path in artifact.iterdir()} == {
        "config.json",
        "model.safetensors",
        "README.md",
    }
    card = (artifact / "README.md").read_text(encoding="utf-8")
    assert "a-model" in card
    assert "600 prompts" in card
    for path in artifact.iterdir():
        assert b"essay about" not in path.read_bytes()


def _change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _change_tensors(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def _no_training(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["training"]
    path.write_text(json.dumps(config))


def _truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _offsets_past_the_end(tensors: dict[str, Any]) -> None:
    tensors["vocabulary.offsets"] = tensors["vocabulary.offsets"] + 1_000_000


def _feature_out_of_range(tensors: dict[str, Any]) -> None:
    tensors["model.buckets"][-1] = 2**30


def _not_finite(tensors: dict[str, Any]) -> None:
    tensors["model.weights"][0] = np.nan


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "newer": (lambda p: _change_config(p, schema="lengthwise.predictor/3"), "newer Lengthwise"),
    "older": (lambda p: _change_config(p, schema="lengthwise.predictor/1"), "older Lengthwise"),
    "foreign": (lambda p: _change_config(p, schema="other/1"), "no predictor of Lengthwise"),
    "features": (lambda p: _change_config(p, features=99), "train again"),
    "kind": (lambda p: _change_config(p, kind="oracular"), "kind 'oracular'"),
    "field": (_no_training, "training: Field required"),
    "json": (lambda p: (p / "config.json").write_text("{"), "config.json is damaged"),
    "not text": (lambda p: (p / "config.json").write_bytes(b"\xff\xfe"), "config.json is damaged"),
    "a list": (lambda p: (p / "config.json").write_text("[]"), "no predictor of Lengthwise"),
    "no config": (lambda p: (p / "config.json").unlink(), "holds no config.json"),
    "no tensors": (lambda p: (p / "model.safetensors").unlink(), "file is missing"),
    "truncated": (_truncate, "model.safetensors is damaged"),
    "a tensor": (
        lambda p: _change_tensors(p, lambda tensors: tensors.pop("model.idf")),
        "tensor model.idf is missing",
    ),
    "its type": (
        lambda p: _change_tensors(
            p, lambda tensors: tensors.update(calibration=np.zeros((3, 5), np.float32))
        ),
        "calibration has another type or shape",
    ),
    "its shape": (
        lambda p: _change_tensors(p, lambda tensors: tensors.update(calibration=np.zeros((0, 5)))),
        "calibration table has another shape",
    ),
    "its size": (
        lambda p: _change_tensors(
            p, lambda tensors: tensors.update({"model.idf": np.zeros(1, np.float32)})
        ),
        "do not fit one another",
    ),
    "offsets": (lambda p: _change_tensors(p, _offsets_past_the_end), "offsets do not fit"),
    "buckets": (lambda p: _change_tensors(p, _feature_out_of_range), "feature is out of range"),
    "nan": (lambda p: _change_tensors(p, _not_finite), "not finite"),
    "gone": (shutil.rmtree, "does not exist"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_artifact_is_one_clear_line(artifact: Path, damage: str) -> None:
    act, message = DAMAGES[damage]
    act(artifact)
    with pytest.raises(InputError, match=message) as raised:
        load_predictor(str(artifact))
    assert "\n" not in str(raised.value)
    assert str(artifact) in str(raised.value)


def test_a_file_is_no_artifact(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("")
    with pytest.raises(InputError, match="is not a folder"):
        load_predictor(str(tmp_path / "p"))


def test_another_tokenizer_is_refused(artifact: Path) -> None:
    _change_config(artifact, tokenizer_fingerprint="0" * 64)
    with pytest.raises(InputError, match="another vocabulary"):
        load_predictor(str(artifact), tokenizer="reference")
    load_predictor(str(artifact))


def test_a_folder_that_cannot_be_written_is_one_line(
    predictor: LexicalPredictor, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot write"):
        predictor.save(tmp_path / "file" / "p")


def test_a_disk_that_fills_up_leaves_the_predictor_that_was_there(
    artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not its configuration beside the weights of the new one."""

    def refuse(path: Path, text: str, encoding: str) -> None:
        path.write_bytes(b"{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    other = train(table(300, seed=2), seed=2)
    before = {path.name: path.read_bytes() for path in artifact.iterdir()}
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", refuse)
        with pytest.raises(InputError, match=r"cannot write .*: No space left"):
            other.save(artifact)
    assert {path.name: path.read_bytes() for path in artifact.iterdir()} == before
    other.save(artifact)
    loaded = load_predictor(str(artifact))
    assert isinstance(loaded, LexicalPredictor)
    assert loaded.metadata == other.metadata
