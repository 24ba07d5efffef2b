"""Laws of sizes and predictions: their moments, what is drawn from them, and what is no law."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.theory import (
    JobLaw,
    SizeLaw,
    deterministic,
    exponential,
    job_density,
    job_samples,
    lognormal,
    noisily_predicted,
    perfectly_predicted,
    size_samples,
    weibull,
)
from lengthwise.theory.laws import POINTS


@pytest.mark.parametrize("sigma", [0.1, 1.0, 2.5, 4.0])
def test_the_points_of_a_law_have_its_moments(sigma: float) -> None:
    for limit in (2_000, POINTS):
        sizes, weights = lognormal(sigma, mean=3.0).points(limit)
        assert weights.sum() == pytest.approx(1, rel=1e-12)
        assert weights @ sizes == pytest.approx(3, rel=1e-6)
        assert weights @ sizes**2 == pytest.approx(9 * math.exp(sigma**2), rel=1e-6)


def test_jobs_are_drawn_from_their_law() -> None:
    random = np.random.default_rng(0)
    laws = (
        noisily_predicted(exponential()),
        noisily_predicted(lognormal(0.5), lambda size, noise: 2 * size),
        job_samples([1.0, 2.0, 5.0], [3.0, 1.0, 1.0]),
        noisily_predicted(size_samples([1.0, 4.0])),
        perfectly_predicted(deterministic(3.0)),
    )
    for law in laws:
        sizes, predictions = law.draw(random, 200_000)
        for drawn, points in ((sizes, law.sizes), (predictions, law.predictions)):
            assert drawn.mean() == pytest.approx(law.weights @ points, rel=0.02)
        product = law.weights @ (law.sizes * law.predictions)
        assert (sizes * predictions).mean() == pytest.approx(product, rel=0.05)
        assert law.without_predictions().draw(random, 5)[1].tolist() == [0.0] * 5


def test_many_samples_become_fewer_points_with_their_moments() -> None:
    seen = np.random.default_rng(0).lognormal(0, 1.5, 300_000)
    for limit in (2_000, POINTS):
        sizes, weights = size_samples(seen).points(limit)
        assert len(sizes) <= limit
        assert weights.sum() == pytest.approx(1)
        assert weights @ sizes == pytest.approx(seen.mean())
        assert weights @ sizes**2 == pytest.approx((seen**2).mean(), rel=1e-4)
    assert sizes.max() == seen.max()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: size_samples([]), "at least one size"),
        (lambda: size_samples([1.0, 0.0]), "above 0, got 0"),
        (lambda: size_samples([1.0, math.nan]), "finite"),
        (lambda: size_samples(["many"]), "must be a number"),
        (lambda: job_samples([1.0, 2.0], [1.0]), "one for each"),
        (lambda: job_samples([1.0], [-1.0]), "negative"),
        (lambda: lognormal(-1), "sigma"),
        (lambda: weibull(0.01), "shape"),
        (lambda: exponential(0), "mean size"),
        (lambda: noisily_predicted(exponential(), lambda x, noise: -x), "negative"),
        (lambda: noisily_predicted(exponential(), lambda x, noise: x[:3]), "one prediction"),
        (lambda: job_density(lambda x, r: 0 * x * r, (1, 2), (1, 2)), "integrates to 0.0000"),
        (lambda: job_density(lambda x, r: x * r, (0, 2), (1, 2)), "bounds"),
    ],
)
def test_impossible_laws_are_refused(make: Callable[[], SizeLaw | JobLaw], words: str) -> None:
    with pytest.raises(InputError, match=words):
        make()
