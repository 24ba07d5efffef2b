"""The predictor with a pretrained backbone: what it learns, reads, refuses, and keeps on disk."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="needs torch: pip install 'lengthwise[encoder]'")
pytest.importorskip("transformers", reason="needs transformers: pip install 'lengthwise[encoder]'")

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.predict import Prompt, load_predictor
from lengthwise.predict.ablation import ablate
from lengthwise.predict.encoder import Head, Precision
from lengthwise.predict.encoder.predictor import (
    READ_TOKENS,
    EncoderPredictor,
    PromptText,
    held_out_rows,
)
from lengthwise.predict.extract import vocabulary_of
from lengthwise.predict.kendall import kendall_tau
from lengthwise.predict.kinds import Recipe, recipe_of
from lengthwise.predict.prediction import SlowPredictor
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.workload.dataset import Dataset
from tests.support.small_backbones import WINDOW, bert_backbone, opt_backbone

REFERENCE = load_tokenizer("reference")
TASKS = {"Write an essay about": 400, "List some facts on": 120, "Is it true what they say of": 9}
SUBJECTS = ["cats", "bread", "rivers", "music", "maps", "winter", "glass", "bees", "tea", "iron"]
BACKBONES: dict[str, Callable[..., Path]] = {"opt": opt_backbone, "bert": bert_backbone}
# Random weights have more to learn than a pretrained model's, and little to lose.
FAST = {"learning_rate": 5e-3, "epochs": 4, "list_length": 16}


def table(count: int, seed: int = 0) -> Dataset:
    """Three tasks whose answers differ in length, on subjects that do not matter."""
    random = np.random.default_rng(seed)
    tasks = random.integers(len(TASKS), size=count)
    starts, means = list(TASKS), np.array(list(TASKS.values()))
    subjects = random.choice(SUBJECTS, (count, 2))
    return Dataset(
        name="tasks.csv",
        prompts=[
            f"{starts[task]} {first} and {second}"
            for task, (first, second) in zip(tasks, subjects, strict=True)
        ],
        lengths=np.ceil(random.lognormal(np.log(means[tasks]), 0.4)).astype(int),
        samples=None,
        rows=np.arange(1, count + 1),
        rejected=[],
        model="a-model",
    )


@pytest.fixture(scope="module")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    sentences = [f"{task} {subject} and {subject}" for task in TASKS for subject in SUBJECTS]
    folder = tmp_path_factory.mktemp("backbones")
    return {name: make(folder / name, sentences) for name, make in BACKBONES.items()}


def trained(backbone: Path, rows: int = 300, **recipe: Any) -> EncoderPredictor:
    options = {"kind": "encoder", **FAST, **recipe}
    predictor = train(table(rows), REFERENCE, Recipe(backbone=str(backbone), **options))
    assert isinstance(predictor, EncoderPredictor)
    return predictor


@pytest.fixture(scope="module")
def predictor(backbones: dict[str, Path]) -> EncoderPredictor:
    return trained(backbones["opt"])


def prompts(texts: list[str]) -> list[Prompt]:
    return [Prompt(token_ids, {}) for token_ids in REFERENCE.encode_chat_many(texts)]


def scores(predictor: Any, texts: list[str]) -> list[float]:
    return [prediction.score for prediction in predictor.predict_many(prompts(texts))]


@pytest.mark.parametrize(
    ("backbone", "recipe"),
    [
        ("opt", {"head": Head.LAST}),
        ("bert", {"head": Head.MEAN}),
        ("bert", {"head": Head.LAST, "loss": "pairwise"}),
        ("opt", {"kind": "regress"}),
        ("bert", {"kind": "classify", "head": Head.MEAN, "bucket": 100}),
    ],
)
def test_it_learns_which_task_takes_long(
    backbones: dict[str, Path], backbone: str, recipe: dict[str, Any]
) -> None:
    predictor = trained(backbones[backbone], **recipe)
    fresh = table(200, seed=9)
    said = np.array(predictor.predict_many(prompts(fresh.prompts)))
    tau = kendall_tau(fresh.lengths, said[:, 0])
    assert tau is not None
    assert tau > 0.55  # knowing the task gives 0.66
    assert (np.diff(said[:, 2:], axis=1) >= 0).all()  # the quantiles are in order
    assert predictor.metadata.held_out.rows == held_out_rows(300)


def test_it_is_slow_and_says_so(predictor: EncoderPredictor) -> None:
    assert isinstance(predictor, SlowPredictor)


def test_one_at_a_time_or_together_is_the_same(predictor: EncoderPredictor) -> None:
    texts = ["Hi", *table(40).prompts, "Write an essay about " + "maps and " * 30]
    together = scores(predictor, texts)
    alone = [scores(predictor, [text])[0] for text in texts]
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("name", list(BACKBONES))
def test_of_a_long_prompt_the_end_counts(backbones: dict[str, Path], name: str) -> None:
    predictor = trained(backbones[name], rows=60, epochs=1)
    assert predictor.settings.window == WINDOW
    tail = "bees and tea " * WINDOW
    one, other, longer = scores(
        predictor, [f"Write an essay about {tail}", f"Is it true? {tail}", f"{tail}{tail}{tail}"]
    )
    assert one == pytest.approx(other, abs=1e-6)
    assert one == pytest.approx(longer, abs=1e-6)
    # As training reads it: a prompt above the window in the table is no trouble.
    assert np.isfinite(scores(predictor, ["x " * 40_000])).all()


def test_nothing_that_a_server_may_send_is_too_odd(predictor: EncoderPredictor) -> None:
    odd = [[], [10**9, -5], [0], list(range(200)), [3] * 3 * READ_TOKENS]
    for prediction in predictor.predict_many([Prompt(token_ids, {}) for token_ids in odd]):
        assert np.isfinite(prediction).all()
        assert 1 <= prediction.low <= prediction.median <= prediction.high
    assert list(predictor.predict_many([])) == []


def test_text_is_rebuilt_from_the_served_models_tokens() -> None:
    text = PromptText(vocabulary_of(REFERENCE))
    said = "Schreib über Flüsse, 河流 and 🙂!\n\n\tTwice  spaced."
    assert said in text.read(REFERENCE.encode_chat(said))
    ids = REFERENCE.encode_plain("word " * 3 * READ_TOKENS)
    assert text.read(ids) == text.read(ids[-READ_TOKENS:])


def test_a_stand_ins_scores_fit_in(predictor: EncoderPredictor) -> None:
    every = predictor.predict_many(prompts(table(100).prompts))
    expected = np.array([prediction.expected for prediction in every])
    placed = np.array([predictor.score_at(value) for value in expected])
    tau = kendall_tau(np.array([prediction.score for prediction in every]), placed)
    assert tau is not None
    assert tau > 0.8
    assert predictor.score_at(0) <= predictor.score_at(100) <= predictor.score_at(10**6)


def test_the_artifact_is_whole_and_safe(
    predictor: EncoderPredictor, tmp_path: Path, backbones: dict[str, Path]
) -> None:
    shutil.copytree(backbones["opt"], tmp_path / "backbone")
    own = trained(tmp_path / "backbone", rows=60, epochs=1)
    own.save(tmp_path / "p")
    own.save(tmp_path / "p")  # over the one that is there
    shutil.rmtree(tmp_path / "backbone")
    suffixes = {path.suffix for path in (tmp_path / "p").rglob("*") if path.is_file()}
    assert suffixes <= {".json", ".safetensors", ".md", ".txt", ".jinja"}
    loaded = load_predictor(str(tmp_path / "p"), tokenizer="reference")
    assert loaded.name == "encoder"
    texts = table(20).prompts
    assert scores(loaded, texts) == pytest.approx(scores(own, texts), abs=1e-6)
    assert isinstance(loaded, EncoderPredictor)
    assert loaded.metadata == own.metadata


def test_a_backbone_that_cannot_be_written_leaves_the_one_that_was_there(
    predictor: EncoderPredictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor.save(tmp_path / "p")

    def files() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = files()

    def fail(folder: Path) -> None:
        (folder / "config.json").write_text("{}")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(predictor._trained(), "save_backbone", fail)
    with pytest.raises(InputError, match=r"cannot write .*p: No space left on device"):
        predictor.save(tmp_path / "p")
    assert files() == before
    assert sorted(path.name for path in (tmp_path / "p").iterdir()) == [
        "README.md",
        "backbone",
        "config.json",
        "model.safetensors",
    ]


def test_the_same_seed_gives_the_same_predictor(backbones: dict[str, Path]) -> None:
    import torch

    texts = table(20).prompts
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = scores(trained(backbones["opt"], rows=60, epochs=1, seed=3), texts)
    assert torch.equal(torch.get_rng_state(), before)
    assert scores(trained(backbones["opt"], rows=60, epochs=1, seed=3), texts) == first
    assert scores(trained(backbones["opt"], rows=60, epochs=1, seed=4), texts) != first


@pytest.mark.parametrize("precision", [Precision.BF16, Precision.INT8])
@pytest.mark.parametrize("name", list(BACKBONES))
def test_fewer_bits_give_nearly_the_same_order(
    backbones: dict[str, Path], name: str, precision: Precision, tmp_path: Path
) -> None:
    predictor = trained(backbones[name], precision=precision)
    predictor.save(tmp_path / "p")
    loaded = load_predictor(str(tmp_path / "p"))
    texts = table(100, seed=4).prompts
    exact = scores(trained(backbones[name]), texts)
    tau = kendall_tau(np.array(exact), np.array(scores(loaded, texts)))
    assert tau is not None
    assert tau > 0.7
    assert scores(loaded, texts) != exact


def test_bad_backbones_are_one_line(tmp_path: Path, backbones: dict[str, Path]) -> None:
    import transformers

    bare = tmp_path / "bare"  # weights without a tokenizer
    shutil.copytree(backbones["opt"], bare)
    for file in bare.glob("token*"):
        file.unlink()
    both = tmp_path / "both"
    shutil.copytree(backbones["opt"], both)
    transformers.T5Model(
        transformers.T5Config(
            vocab_size=400, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8
        )
    ).save_pretrained(both)
    torn = tmp_path / "torn"
    shutil.copytree(backbones["opt"], torn)
    (torn / "model.safetensors").write_bytes(b"\x00" * 64)
    for folder, says in [
        (tmp_path / "none", "no such folder"),
        (bare, "no tokenizer"),
        (both, "encoder and a decoder"),
        (torn, "cannot load the backbone"),
    ]:
        with pytest.raises(InputError, match=says) as caught:
            trained(folder, rows=60)
        assert "\n" not in str(caught.value)


def test_without_a_backbone_it_says_which_option_is_missing() -> None:
    with pytest.raises(InputError, match="--backbone"):
        train(table(60), REFERENCE, Recipe(kind="encoder"))


def test_without_torch_it_says_what_to_install(
    backbones: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "lengthwise.predict.encoder.backbone", raising=False)
    with pytest.raises(InputError, match=r"lengthwise\[encoder\]"):
        trained(backbones["opt"], rows=60)


def test_a_training_that_diverges_is_one_line(backbones: dict[str, Path]) -> None:
    with pytest.raises(LengthwiseError, match="--learning-rate") as caught:
        trained(backbones["opt"], learning_rate=1e30)
    assert "\n" not in str(caught.value)


def test_a_damaged_artifact_is_one_line(predictor: EncoderPredictor, tmp_path: Path) -> None:
    predictor.save(tmp_path / "p")
    shutil.rmtree(tmp_path / "p" / "backbone")
    with pytest.raises(InputError, match="backbone") as caught:
        load_predictor(str(tmp_path / "p"))
    assert "\n" not in str(caught.value)


def test_the_ablation_compares_backbones(backbones: dict[str, Path]) -> None:
    """Long, since each backbone is really fine-tuned: nothing else goes from names to taus."""
    names = [str(folder) for folder in backbones.values()]
    measured = {"test": table(60, seed=2)}
    base = Recipe(epochs=1, learning_rate=5e-3)
    results = ablate(["backbone"], base, table(80), measured, REFERENCE, backbones=names)
    assert [each.setting for each in results] == ["lexical", *names]
    assert all(each.taus["test"].rows == 60 for each in results)


def test_without_a_name_the_built_in_model_is_the_backbone() -> None:
    base = Recipe(epochs=1, learning_rate=5e-3)
    results = ablate(["backbone"], base, table(60), {"test": table(30, seed=2)}, REFERENCE)
    assert [each.setting for each in results] == ["lexical", "reference"]


def test_an_artifact_says_how_it_was_trained(predictor: EncoderPredictor) -> None:
    recipe = recipe_of(predictor.metadata)
    assert recipe.head is Head.LAST
    assert recipe.precision is Precision.FP32
    assert recipe.loss == "listmle"
    assert recipe.bucket == 10
    assert {name: getattr(recipe, name) for name in FAST} == FAST


def test_kinds_without_a_backbone_refuse_one(backbones: dict[str, Path]) -> None:
    with pytest.raises(InputError, match="encoder, classify, regress"):
        trained(backbones["opt"], kind="lexical")


def test_enough_rows_are_held_out() -> None:
    assert held_out_rows(20) == 10
    assert held_out_rows(300) == 150
    assert held_out_rows(1_000) == 200
    assert held_out_rows(10_000) == 1_000
