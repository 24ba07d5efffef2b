"""Training a probe: what it learns and chooses, that it resumes, and what it refuses."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

from lengthwise.errors import InputError
from lengthwise.intervals import GroupDraws
from lengthwise.probe import Probe
from lengthwise.probe.fit import Examples, Recipe, attention_pooled, fit_network, probabilities
from lengthwise.probe.refine import midpoints
from lengthwise.probe.states import TEST, TRAIN, open_states, write_meta, write_shard
from lengthwise.probe.training import METHODS, Trained, by_age, train_probe
from lengthwise.reference.prompts import generate
from tests.support.reference_states import collect
from tests.support.synthetic_states import (
    HIDDEN,
    LAYERS,
    coarsen,
    make_meta,
    make_shard,
    write_folder,
)

QUICK = Recipe(hidden=32, epochs=6, batch=64)


@pytest.fixture(scope="module", autouse=True)
def _coarse_grid() -> Iterator[None]:
    """Fewer constants of the filter are tried: hundreds of replays teach these tests nothing."""
    with pytest.MonkeyPatch.context() as patched:
        coarsen(patched)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("states") / "s", shards=2, each=100, prompt_states=True
    )


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trained, Path]:
    out = tmp_path_factory.mktemp("probe") / "p"
    return train_probe(open_states(folder), out, recipe=QUICK), out


def test_it_chooses_the_layer_that_tells_most(trained: tuple[Trained, Path]) -> None:
    report = trained[0].report
    assert report.layers == [2]
    assert [each.layer for each in report.by_layer] == LAYERS
    valid = {each.layer: each.mae_valid for each in report.by_layer}
    assert min(valid, key=lambda layer: valid[layer]) == 2
    chosen = report.by_layer[1].mae_raw
    assert chosen == report.mae_raw
    assert chosen.low < chosen.value < chosen.high


def test_the_probe_beats_the_prompt_and_refining_helps(trained: tuple[Trained, Path]) -> None:
    report = trained[0].report
    assert report.mae_refined.value < report.mae_raw.value
    assert report.mae_raw.value < report.mae_prompt_only.value
    assert report.ratio_prompt_only.value == pytest.approx(
        report.mae_prompt_only.value / report.mae_refined.value
    )
    assert report.ratio_prompt_only.low < report.ratio_prompt_only.value
    assert 0.5 < report.coverage_80 <= 1


def test_pooling_is_chosen_on_validation_answers(trained: tuple[Trained, Path]) -> None:
    report = trained[0].report
    errors = {each.pooling: each.mae_valid for each in report.by_pooling}
    assert errors.keys() == {"mean", "last", "attention"}
    assert report.pooling == "last"  # of the two that can be served, the one with less noise
    assert errors["last"] < errors["mean"]


def test_the_figures_are_of_all_tokens_of_test_answers(
    folder: Path, trained: tuple[Trained, Path]
) -> None:
    report = trained[0].report
    requests = open_states(folder).requests
    test = requests.split == TEST
    assert report.test_requests == test.sum()
    assert report.test_states == (requests.length[test] - 1).sum()
    assert sum(each.states for each in report.by_age_decile) == report.test_states
    for name in METHODS:
        total = sum(each.states * getattr(each, f"mae_{name}") for each in report.by_age_decile)
        whole = getattr(report, f"mae_{name}").value
        assert total / report.test_states == pytest.approx(whole)
    flat = report.as_dict()
    assert flat["mae_refined"] == report.mae_refined.value
    assert flat["mae_refined_low"] == report.mae_refined.low
    assert flat["by_layer"][0]["mae_raw_high"] == report.by_layer[0].mae_raw.high


def test_the_artifact_says_the_same_as_the_training(
    folder: Path, trained: tuple[Trained, Path]
) -> None:
    (probe, report), out = trained
    again = Probe.load(out)
    assert again.metadata == probe.metadata
    assert again.metadata.metrics["mae_refined"] == report.mae_refined.value
    assert not (out / "checkpoints").exists()
    states = open_states(folder)
    own = states.requests.split[states.moments.request] == TEST
    found = probabilities(again.decode, states.decode_states(2)[own]) @ midpoints(again.edges)
    remaining = (states.requests.length[states.moments.request] - states.moments.age)[own]
    most = states.meta.max_tokens - states.moments.age[own]
    error = np.abs(np.clip(found, 1, most) - remaining).mean()
    assert error == pytest.approx(report.mae_raw.value, rel=1e-6)


def test_the_same_seed_gives_the_same_probe_and_layers_can_be_given(
    folder: Path, tmp_path: Path
) -> None:
    states = open_states(folder)
    first, second, other = (
        train_probe(
            states, tmp_path / str(run), layers=[3, 2], bins="equal", seed=seed, recipe=QUICK
        )
        for run, seed in enumerate((0, 0, 1))
    )
    assert first.report == second.report
    np.testing.assert_array_equal(first.probe.decode.first, second.probe.decode.first)
    assert first.probe.decode.first.shape == (2 * HIDDEN, QUICK.hidden)
    assert not np.array_equal(first.probe.decode.first, other.probe.decode.first)
    assert first.report.layers == [3, 2]
    assert first.report.by_layer == []
    np.testing.assert_allclose(np.diff(first.probe.edges), first.probe.edges[-1] / 10)


class StopError(Exception):
    """An interruption."""


def some_examples(count: int = 400) -> Examples:
    random = np.random.default_rng(5)
    states = random.normal(3, 20, (count, 6)).astype(np.float16)
    targets = np.clip(states[:, 0] / 20 + 1, 0, 3).astype(np.int64)
    return Examples(states, targets, np.arange(300), np.arange(300, count))


def test_an_interrupted_training_comes_to_the_same_weights(tmp_path: Path) -> None:
    def interrupt(part: float) -> None:
        if part >= 0.5:
            raise StopError

    examples, silent = some_examples(), lambda part: None
    whole = fit_network(
        examples, 4, QUICK, seed=1, checkpoint=tmp_path / "a.safetensors", progress=silent
    )
    path = tmp_path / "b.safetensors"
    with pytest.raises(StopError):
        fit_network(examples, 4, QUICK, seed=1, checkpoint=path, progress=interrupt)
    parts: list[float] = []
    resumed = fit_network(examples, 4, QUICK, seed=1, checkpoint=path, progress=parts.append)
    assert len(parts) == QUICK.epochs - 3
    for mine, theirs in zip(resumed.network, whole.network, strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_a_checkpoint_of_something_else_is_not_used(tmp_path: Path) -> None:
    path = tmp_path / "c.safetensors"
    fit_network(some_examples(), 4, QUICK, seed=1, checkpoint=path, progress=lambda part: None)
    for changed in ("seed", "damaged"):
        if changed == "damaged":
            path.write_bytes(path.read_bytes()[:100])
        parts: list[float] = []
        fit_network(some_examples(), 4, QUICK, seed=2, checkpoint=path, progress=parts.append)
        assert len(parts) == QUICK.epochs


def test_folding_keeps_what_the_network_says(tmp_path: Path) -> None:
    """States far from zero, of which one never changes, are learnt as well as any."""
    examples = some_examples()
    states = examples.states.astype(np.float32) + 500
    states[:, 5] = 7
    fitted = fit_network(
        examples._replace(states=states.astype(np.float16)),
        4,
        QUICK._replace(epochs=40),
        seed=0,
        checkpoint=tmp_path / "d.safetensors",
        progress=lambda part: None,
    )
    found = probabilities(fitted.network, states.astype(np.float16)).argmax(axis=1)
    assert (found == examples.targets)[300:].mean() > 0.8
    assert not fitted.network.first[5].any()


def test_attention_finds_the_token_that_tells(tmp_path: Path) -> None:
    """One token in six is marked and holds the answer; its place differs."""
    random = np.random.default_rng(8)
    count, tokens = 600, 6
    states = random.normal(size=(count, tokens, 3))
    marked = random.integers(tokens, size=count)
    rows = np.arange(count)
    targets = random.integers(2, size=count)
    states[rows, marked] = np.stack([np.full(count, 4.0), 2 * targets - 1.0, targets * 0], axis=1)
    starts = np.arange(count + 1) * tokens
    flat = states.reshape(-1, 3).astype(np.float16)
    fitted = fit_network(
        Examples(flat, targets, rows[:400], rows[400:], starts=starts),
        2,
        QUICK._replace(epochs=40),
        seed=0,
        checkpoint=tmp_path / "e.safetensors",
        progress=lambda part: None,
    )
    assert fitted.query is not None
    found = probabilities(fitted.network, attention_pooled(flat, starts, fitted.query))
    assert (found.argmax(axis=1) == targets)[400:].mean() > 0.95


def test_intervals_come_from_whole_requests() -> None:
    request = np.repeat([4, 9, 11, 12], [1000, 1000, 1000, 1000])
    alike = np.repeat([0.0, 0.0, 8.0, 8.0], 1000)
    figure = GroupDraws(request, 0).mean(alike)
    assert figure.value == 4
    assert figure.low <= 1  # four requests, however many tokens they have
    assert figure.high >= 7
    ratio = GroupDraws(request, 0).ratio(2 * alike + 2, alike + 1)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2, 2, 2))


def test_no_age_is_in_two_groups() -> None:
    age = np.repeat([1, 2, 3, 50], [70, 10, 10, 10])
    errors = dict.fromkeys(METHODS, age * 1.0)
    groups = by_age(age, age, errors)
    bounds = [(each.age_from, each.age_to) for each in groups]
    assert bounds == sorted(bounds)
    assert all(first[1] < second[0] for first, second in itertools.pairwise(bounds))
    assert sum(each.states for each in groups) == 100
    assert groups[0].mae_raw == 1


def test_answers_of_no_token_and_beyond_the_last_bin_are_learnt_from(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    shard = make_shard(200, 0)
    young = [row for row in range(200) if shard.split[row] == TRAIN][:3]
    kept = ~np.isin(shard.decode_request, young)
    shard.length[young] = 0, 1, 1
    shard = shard._replace(
        decode_request=shard.decode_request[kept],
        decode_age=shard.decode_age[kept],
        decode_states=shard.decode_states[kept],
    )
    write_shard(folder, 0, shard)
    write_meta(folder, make_meta(200))
    report = train_probe(open_states(folder), tmp_path / "p", layers=[2], recipe=QUICK).report
    assert report.beyond_last_bin >= 1  # the last bin ends at the 99.9 % quantile
    assert report.train_requests == (shard.split == TRAIN).sum()
    assert np.isfinite(report.mae_refined.value)


@pytest.mark.parametrize(
    ("requests", "splits", "message"),
    [
        (10, None, "usable states of 6 training requests, training needs at least 20"),
        (60, [TRAIN], "of 0 validation requests"),
        (60, [TEST], "holds no training requests"),
    ],
)
def test_too_few_requests_are_refused(
    tmp_path: Path, requests: int, splits: list[int] | None, message: str
) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    shard = make_shard(requests, 0)
    shard.length[:] = np.maximum(shard.length, 30)
    if splits is not None:
        shard.split[:] = splits
    write_shard(folder, 0, shard)
    write_meta(folder, make_meta(requests))
    with pytest.raises(InputError, match=message):
        train_probe(open_states(folder), tmp_path / "p", layers=[2], recipe=QUICK)


@pytest.mark.slow
def test_the_reference_models_states_tell_what_an_age_does_not(tmp_path: Path) -> None:
    """Real hidden states of the built-in model, by a way to them that has no vLLM in it.

    A linear reading of a hundred answers is enough to tell which tokens are near the end; how much
    better than the prompt a whole probe is takes thousands (docs/background/probe.md).
    """
    pytest.importorskip("transformers", reason="transformers is not installed")
    prompts = [each.text for each in generate(120, seed=5)]
    collect(tmp_path / "s", prompts, seed=1)
    states = open_states(tmp_path / "s")
    assert states.requests.finished.mean() > 0.98
    # At layer 0 equal tokens have equal states, at the next they do not.
    embedded = len(np.unique(states.decode_states(0), axis=0))
    assert embedded <= 1024 < len(np.unique(states.decode_states(1), axis=0))

    request, age = states.moments
    remaining = states.requests.length[request] - age
    test = states.requests.split[request] != TRAIN
    near = remaining[test] <= 5

    def found(inputs: np.ndarray) -> float:
        """The chance that a token near the end is told from one that is not, by ridge."""
        scale = inputs[~test].std(axis=0) + 1e-3
        inputs = np.c_[(inputs - inputs[~test].mean(axis=0)) / scale, np.ones(age.size)]
        known = inputs[~test]
        weights = np.linalg.solve(
            known.T @ known + 100 * np.eye(inputs.shape[1]), known.T @ np.log(remaining[~test])
        )
        read = inputs[test] @ weights
        return float((read[near][:, np.newaxis] < read[~near]).mean())

    by_age = found(np.log(age)[:, np.newaxis])
    by_state = found(states.decode_states(4).astype(np.float64))
    assert by_state > by_age + 0.08  # 0.15 to 0.3 more with four other seeds
