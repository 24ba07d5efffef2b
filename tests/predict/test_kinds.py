"""All kinds of predictors: trained, kept and read in one way, and honest about their doubt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.predict import Prompt, load_predictor
from lengthwise.predict.evaluate import evaluate
from lengthwise.predict.kinds import KINDS, Recipe, TrainedPredictor
from lengthwise.predict.lexical import LEXICAL_KINDS, LexicalPredictor
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from tests.support.answer_tables import TASKS, table

REFERENCE = load_tokenizer("reference")


@pytest.fixture(scope="module", params=LEXICAL_KINDS)
def predictor(request: pytest.FixtureRequest) -> TrainedPredictor:
    return train(table(800), REFERENCE, Recipe(request.param, seed=1))


def test_every_kind_orders_and_knows_its_doubt(predictor: TrainedPredictor) -> None:
    result = evaluate(predictor, table(800, seed=9, samples=3), REFERENCE)
    assert result.tau is not None
    assert result.ceiling_tau is not None
    # The best bucket is one of few where two tasks share it; others do as well as can be.
    slack = 0.2 if predictor.metadata.kind == "classify" else 0.08
    assert result.tau > result.ceiling_tau - slack
    assert result.coverage_80 == pytest.approx(0.8, abs=0.07)
    assert result.mean_expected == pytest.approx(result.mean_length, rel=0.1)


def test_every_kind_gives_ordered_quantiles(predictor: TrainedPredictor) -> None:
    random = np.random.default_rng(0)
    for size in (0, 1, 30, 3_000):
        prompt = Prompt(random.integers(-5, 2_000, size).tolist(), {})
        prediction = predictor.predict(prompt)
        assert np.isfinite(prediction).all()
        assert 1 <= prediction.low <= prediction.median <= prediction.high


def test_every_kind_is_kept_and_read(predictor: TrainedPredictor, tmp_path: Path) -> None:
    predictor.save(tmp_path / "p")
    config = json.loads((tmp_path / "p/config.json").read_text())
    kind = KINDS[predictor.name]
    assert (config["kind"], config["loss"]) == (kind.name, kind.losses[0])
    assert config["bucket"] == kind.bucket
    assert kind.summary in (tmp_path / "p/README.md").read_text(encoding="utf-8")
    loaded = load_predictor(str(tmp_path / "p"), tokenizer="reference")
    for text in (*TASKS, "", "Something else entirely"):
        prompt = Prompt(REFERENCE.encode_chat(text), {})
        assert loaded.predict(prompt) == predictor.predict(prompt)


@pytest.mark.parametrize("loss", KINDS["lexical"].losses)
@pytest.mark.parametrize("bucket", [1, 10])
def test_every_ranking_loss_trains_the_default(loss: str, bucket: int) -> None:
    predictor = train(table(300), REFERENCE, Recipe(loss=loss, bucket=bucket))
    assert predictor.metadata.loss == loss
    assert predictor.metadata.bucket == bucket
    assert (predictor.metadata.held_out.tau or 0) > 0.6


@pytest.mark.parametrize("kind", ["quantile", "classify"])
def test_distributions_are_learnt_from_all_answers(kind: str) -> None:
    predictor = train(table(900, samples=5), REFERENCE, Recipe(kind))
    assert predictor.metadata.training.answers == 4_500
    result = evaluate(predictor, table(500, seed=2), REFERENCE)
    assert result.coverage_80 == pytest.approx(0.8, abs=0.08)


def test_quantiles_of_their_own_follow_the_spread() -> None:
    """A score cannot say that one task's answers vary more; quantiles of their own can."""
    random = np.random.default_rng(0)
    rows = table(2_000)
    wide = random.integers(2, size=2_000).astype(bool)
    rows.prompts[:] = ["Perhaps go on" if each else "Answer so" for each in wide]
    rows.lengths[:] = np.ceil(random.lognormal(5, np.where(wide, 1.0, 0.1)))
    predictor = train(rows, REFERENCE, Recipe("quantile"))
    ratio = {}
    for text in ("Perhaps go on", "Answer so"):
        prediction = predictor.predict(Prompt(REFERENCE.encode_chat(text), {}))
        ratio[text] = prediction.high / prediction.low
    assert ratio["Perhaps go on"] > 2 * ratio["Answer so"]


def test_only_the_groups_that_are_asked_for_are_looked_at() -> None:
    predictor = train(table(300), REFERENCE, Recipe(groups=("words",)))
    assert isinstance(predictor, LexicalPredictor)
    assert set(predictor.parameters.model.buckets >> 17) == {0}
    with pytest.raises(InputError, match="did you mean 'words'"):
        train(table(300), REFERENCE, Recipe(groups=("wrods",)))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (Recipe("lexicla"), "did you mean 'lexical'"),
        (Recipe(loss="listmel"), "did you mean 'listmle'"),
        (Recipe("regress", loss="listmle"), "cannot be trained with the loss listmle"),
        (Recipe("classify", bucket=0), "holds nothing"),
        (Recipe("classify", bucket=100_000), "fall into one bucket"),
    ],
)
def test_what_cannot_be_done_is_one_line(recipe: Recipe, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        train(table(50), REFERENCE, recipe)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("kind", LEXICAL_KINDS)
def test_few_rows_are_enough_to_begin_with(kind: str) -> None:
    predictor = train(table(20), REFERENCE, Recipe(kind))
    prediction = predictor.predict(Prompt(REFERENCE.encode_chat("Anything"), {}))
    assert 1 <= prediction.low <= prediction.median <= prediction.high
