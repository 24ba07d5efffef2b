"""Predictors as others published them: their features, and their laws."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t

from bench.published import LogT, LogTPredictor, clairvoyant_features, moving_beta
from lengthwise.errors import InputError
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.workload.dataset import Dataset


def test_clairvoyant_looks_at_nineteen_things() -> None:
    found = clairvoyant_features("Explaining SQL, briefly: what is a table?", 11)
    assert len(found) == 19
    assert found[:6] == [11.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    assert found[6:].index(1.0) == 9  # "what": "explaining" is not among its forms
    assert sum(found[6:]) == 1
    assert clairvoyant_features("Translating", 2)[-1] == 1.0


def test_the_law_has_the_mean_and_the_tail_of_draws() -> None:
    law = LogT(np.array([5.0, 3.0]), np.array([0.5, 0.2]))
    random = np.random.default_rng(0)
    draws = np.exp(law.mu + law.sigma * t.rvs(3.5, size=(200_000, 2), random_state=random))
    draws = np.sort(np.minimum(draws, 2048.0), axis=0)
    mean, tail = law.mean_and_tail()
    assert mean == pytest.approx(draws.mean(axis=0), rel=0.01)
    assert tail == pytest.approx(draws[180_000:].mean(axis=0), rel=0.01)
    assert law.scores(0.5) == pytest.approx(mean + 0.5 * tail)


def test_the_tail_weighs_more_where_more_wait() -> None:
    assert moving_beta(np.array([0, 64, 128, 10_000]), 64).tolist() == [0.1, 0.1, 0.2, 0.5]


def test_the_law_is_learnt_from_several_answers() -> None:
    random = np.random.default_rng(1)
    unsure = random.integers(2, size=300)
    prompts = [f"{'Write' if each else 'Name'} number {n}" for n, each in enumerate(unsure)]
    samples = [random.lognormal(4.0, 0.8 if each else 0.1, 8).astype(int) + 1 for each in unsure]
    dataset = Dataset(
        name="made",
        prompts=prompts,
        lengths=np.array([each[0] for each in samples]),
        samples=samples,
        rows=np.arange(1, 301),
        rejected=[],
    )
    tokenizer = load_tokenizer("reference")
    law = LogTPredictor(dataset, tokenizer).laws(dataset)
    assert law.sigma[unsure == 1].mean() > 2 * law.sigma[unsure == 0].mean()
    with pytest.raises(InputError, match="several answers"):
        LogTPredictor(replace(dataset, samples=None), tokenizer)
