"""Formulas against textbooks, quadrature and simulation."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import kv

from lengthwise.errors import InputError
from lengthwise.theory import (
    POLICIES,
    JobLaw,
    conditional_response_time,
    deterministic,
    exponential,
    job_density,
    job_samples,
    lognormal,
    mean_response_time,
    mean_response_time_tagged_cutoff,
    noisily_predicted,
    perfectly_predicted,
    simulate,
    size_samples,
    weibull,
)
from lengthwise.theory.response_times import play

CUTOFFS = (0.0, 0.2, 0.5, 0.8, 1.0)
# Exponential sizes: mean response times at those cutoffs, from an implementation by integrals that
# was simulated with 10^8 jobs a cell.
VALIDATED = {
    ("perfect", 0.5): (1.7127, 1.5851, 1.4702, 1.4288, 1.4254),
    ("perfect", 0.7): (2.3122, 2.1136, 1.9397, 1.8794, 1.8746),
    ("perfect", 0.9): (4.1969, 3.8918, 3.6400, 3.5584, 3.5521),
    ("exponential", 0.5): (1.7948, 1.7029, 1.6726, 1.6616, 1.6583),
    ("exponential", 0.7): (2.5726, 2.4259, 2.3886, 2.3735, 2.3688),
    ("exponential", 0.9): (5.3610, 5.1383, 5.1223, 5.1047, 5.0985),
}
CELLS = [
    pytest.param(predictions, rate, c, expected, id=f"{predictions}-{rate}-{c}")
    for (predictions, rate), values in VALIDATED.items()
    for c, expected in zip(CUTOFFS, values, strict=True)
]


@cache
def jobs_of(predictions: str) -> JobLaw:
    """Exponential sizes with those predictions."""
    law = exponential()
    return perfectly_predicted(law) if predictions == "perfect" else noisily_predicted(law)


@pytest.mark.parametrize(("predictions", "rate", "c", "expected"), CELLS)
def test_every_cell_of_the_validation_table(
    predictions: str, rate: float, c: float, expected: float
) -> None:
    jobs = jobs_of(predictions)
    mean = mean_response_time(jobs, rate, "trail", c)
    assert mean == pytest.approx(expected, abs=0.5001e-4)  # all digits of the table
    simulation = simulate(jobs, rate, "trail", c, count=500_000, seed=0)
    ratio = mean / simulation.mean_response_time
    assert abs(ratio - 1) < 0.005 or simulation.low <= mean <= simulation.high


@pytest.mark.parametrize("load", [0.3, 0.7, 0.95])
def test_first_come_first_served_is_pollaczek_khinchine(load: float) -> None:
    for law, second_moment in (
        (exponential(), 2.0),
        (deterministic(), 1.0),
        (lognormal(1.2), math.exp(1.2**2)),
        (weibull(0.6), math.gamma(1 + 2 / 0.6) / math.gamma(1 + 1 / 0.6) ** 2),
    ):
        expected = 1 + load * second_moment / (2 * (1 - load))
        for jobs in (perfectly_predicted(law), noisily_predicted(law)):
            assert mean_response_time(jobs, load, "fcfs") == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("policy", POLICIES)
def test_jobs_that_are_all_alike_are_served_in_order_of_arrival(policy: str) -> None:
    jobs = perfectly_predicted(deterministic())
    assert mean_response_time(jobs, 0.8, policy) == pytest.approx(1 + 0.8 / 0.4)


# Density and load of the jobs not longer than x, mean 1.
TEXTBOOK_LAWS = {
    "exponential": (
        exponential(),
        lambda x: math.exp(-x),
        lambda x: 1 - (1 + x) * math.exp(-x),
    ),
    "weibull 2": (
        weibull(2.0),
        lambda x: math.pi / 2 * x * math.exp(-math.pi / 4 * x * x),
        lambda x: math.erf(math.sqrt(math.pi) / 2 * x) - x * math.exp(-math.pi / 4 * x * x),
    ),
}


@pytest.mark.parametrize("name", TEXTBOOK_LAWS)
@pytest.mark.parametrize("load", [0.5, 0.9])
def test_srpt_is_schrage_and_miller(name: str, load: float) -> None:
    """By adaptive quadrature of the formula of 1966, in the form of its textbooks."""
    law, density, truncated_mean = TEXTBOOK_LAWS[name]

    def survival(x: float) -> float:
        return math.exp(-x) if name == "exponential" else math.exp(-math.pi / 4 * x * x)

    def conditional(x: float) -> float:
        # λ E[min(X, x)²] = 2 λ ∫ t P(X > t) dt from 0 to x
        squared = 2 * load * quad(lambda t: t * survival(t), 0, x)[0]
        residence = quad(lambda t: 1 / (1 - load * truncated_mean(t)), 0, x)[0]
        return float(squared / (2 * (1 - load * truncated_mean(x)) ** 2) + residence)

    expected = quad(lambda x: density(x) * conditional(x), 0, 40, epsrel=1e-7, limit=200)[0]
    jobs = perfectly_predicted(law)
    assert mean_response_time(jobs, load, "srpt") == pytest.approx(expected, rel=1e-5)
    single = conditional_response_time(jobs, load, "srpt", 1.0, [0.3, 2.5], [0.3, 2.5])
    assert single == pytest.approx([conditional(0.3), conditional(2.5)], rel=1e-3)


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_shortest_predicted_job_first_by_quadrature(load: float) -> None:
    """With exponential sizes and predictions, loads are Bessel functions of the prediction r = s².

    E[T] = 1 + λ ∫ f(r) / (1 − ρ(r))² dr with f = 2 K0(2 √r), ρ(r) = λ (1 − 2 r K2(2 √r)).
    """

    def integrand(s: float) -> float:
        return float(4 * s * kv(0, 2 * s) / (1 - load * (1 - 2 * s * s * kv(2, 2 * s))) ** 2)

    expected = 1 + load * quad(integrand, 1e-12, 60, epsrel=1e-10, limit=500)[0]
    jobs = jobs_of("exponential")
    assert mean_response_time(jobs, load, "sjf") == pytest.approx(expected, rel=1e-5)


def test_a_joint_density_and_samples_of_it_give_what_the_predictor_gives() -> None:
    density = job_density(
        lambda x, r: np.exp(-x - r / x) / x, sizes=(1e-6, 40.0), predictions=(1e-12, 500.0)
    )
    random = np.random.default_rng(3)
    samples = job_samples(*jobs_of("exponential").draw(random, 100_000))
    for c in (0.0, 0.5, 1.0):
        expected = mean_response_time(jobs_of("exponential"), 0.7, "trail", c)
        assert mean_response_time(density, 0.7, "trail", c) == pytest.approx(expected, rel=2e-4)
        assert mean_response_time(samples, 0.7, "trail", c) == pytest.approx(expected, rel=0.02)


def by_definition(jobs: JobLaw, rate: float, c: float) -> float:
    """The formula of `theory.response_times` for pairs that are equally likely, term by term."""
    pairs = list(zip(jobs.sizes, jobs.predictions, strict=True))
    n = len(pairs)

    def load(keep: Callable[[float], bool]) -> float:
        return rate / n * sum(y for y, t in pairs if keep(t))

    total = 0.0
    for x, r in pairs:
        squares = 0.0
        for y, t in pairs:
            served = 0.0 if t <= r else min(t - r, c * t)
            squares += max(y - served, 0.0) ** 2 / n
        preemptible = min(x, c * r)
        # Between two predictions the rate of the integral does not change.
        corners = sorted({r - preemptible, r, *(t for _, t in pairs if r - preemptible < t < r)})
        residence = 0.0
        for lower, upper in itertools.pairwise(corners):
            middle = (lower + upper) / 2
            residence += (upper - lower) / (1 - load(lambda t, middle=middle: t < middle))
        denominator = 2 * (1 - load(lambda t, r=r: t < r)) * (1 - load(lambda t, r=r: t <= r))
        total += rate * squares / denominator + residence + x - preemptible
    return total / n


SIZES = st.sampled_from([0.25, 1.0, 1.5, 2.0, 7.0]) | st.floats(0.05, 20)
PREDICTIONS = st.sampled_from([0.0, 1.0, 2.0, 8.0]) | st.floats(1e-9, 50)
PAIRS = st.lists(st.tuples(SIZES, PREDICTIONS), min_size=1, max_size=12)
LOADS = st.floats(0.05, 0.95)


@given(PAIRS, LOADS, st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_the_quick_sums_are_the_formula(
    pairs: list[tuple[float, float]], load: float, c: float
) -> None:
    jobs = job_samples(*zip(*pairs, strict=True))
    rate = load / jobs.mean_size
    expected = by_definition(jobs, rate, c)
    assert mean_response_time(jobs, rate, "trail", c) == pytest.approx(expected, rel=1e-9)


@given(PAIRS, LOADS, st.floats(0, 1), st.floats(0.01, 100))
@settings(deadline=None, max_examples=60)
def test_the_unit_of_time_does_not_matter_and_more_arrivals_never_help(
    pairs: list[tuple[float, float]], load: float, c: float, scale: float
) -> None:
    sizes, predictions = (np.array(column) for column in zip(*pairs, strict=True))
    jobs, scaled = job_samples(sizes, predictions), job_samples(scale * sizes, scale * predictions)
    rate = load / jobs.mean_size
    for policy in POLICIES:
        mean = mean_response_time(jobs, rate, policy, c)
        assert mean_response_time(scaled, rate / scale, policy, c) == pytest.approx(mean * scale)
        assert mean >= jobs.mean_size * (1 - 1e-12)
        assert mean_response_time(jobs, 1.04 * rate, policy, c) >= mean


@given(st.lists(SIZES, min_size=1, max_size=12), LOADS, st.floats(0, 1))
@settings(deadline=None, max_examples=60)
def test_with_perfect_predictions_srpt_is_best_and_fcfs_is_worst(
    sizes: list[float], load: float, c: float
) -> None:
    jobs = perfectly_predicted(size_samples(sizes))
    rate = load / jobs.mean_size
    srpt, trail, sjf, fcfs = (
        mean_response_time(jobs, rate, policy, c) for policy in ("srpt", "trail", "sjf", "fcfs")
    )
    assert srpt <= trail * (1 + 1e-12)
    assert srpt <= sjf * (1 + 1e-12)
    assert sjf <= fcfs * (1 + 1e-12)


def test_the_named_policies_are_cutoffs_of_one_rule() -> None:
    jobs = jobs_of("exponential")
    for policy, c in (("sjf", 0.0), ("srpt", 1.0)):
        mean = mean_response_time(jobs, 0.8, policy, c=0.3)
        assert mean == mean_response_time(jobs, 0.8, "trail", c)
    limit = mean_response_time(jobs, 0.8, "trail", 1e-9)
    assert limit == pytest.approx(mean_response_time(jobs, 0.8, "sjf"), rel=1e-6)


def test_the_other_reading_of_the_lemma_is_too_high() -> None:
    jobs = perfectly_predicted(exponential(), limit=1024)
    excess = [
        mean_response_time_tagged_cutoff(jobs, rate, c) / mean_response_time(jobs, rate, "trail", c)
        for rate in (0.5, 0.7, 0.9)
        for c in (0.2, 0.5, 0.8)
    ]
    assert 1.08 < min(excess) < 1.09
    assert 1.20 < max(excess) < 1.22
    assert mean_response_time_tagged_cutoff(jobs, 0.7, 0.8) == pytest.approx(2.277, abs=5e-4)
    # Without preemption the cutoff is 0 in both readings.
    assert mean_response_time_tagged_cutoff(jobs, 0.7, 0.0) == pytest.approx(2.3122, abs=1e-4)


def test_conditional_means_agree_with_simulation() -> None:
    jobs, rate, c = jobs_of("exponential"), 0.8, 0.5
    batches, count = 20, 30_000
    random = np.random.default_rng(7)
    surplus = np.empty((batches, 16))
    for batch in range(batches):
        arrivals = np.cumsum(random.standard_exponential(count) / rate)
        sizes, predictions = jobs.draw(random, count)
        response = play(arrivals, sizes, predictions, c)[0]
        expected = conditional_response_time(jobs, rate, "trail", c, sizes, predictions)
        middle = slice(count // 10, -count // 10)
        places = 4 * np.digitize(sizes, [0.3, 0.7, 1.4]) + np.digitize(predictions, [0.1, 0.4, 1.3])
        of_bin = [np.flatnonzero(places[middle] == place) for place in range(16)]
        for place, members in enumerate(of_bin):
            difference = response[middle][members] - expected[middle][members]
            surplus[batch, place] = difference.mean() / expected[middle][members].mean()
    mean, error = surplus.mean(axis=0), surplus.std(axis=0, ddof=1) / math.sqrt(batches)
    assert np.all(np.abs(mean) < 4.1 * error)  # 99 % for all 16 together (Student's t)
    assert np.median(error) < 0.01


def test_impossible_queues_are_refused() -> None:
    jobs = perfectly_predicted(deterministic(2.0))
    with pytest.raises(InputError, match=r"load is 1\.2.*grows without bound.*below 0\.5"):
        mean_response_time(jobs, 0.6, "fcfs")
    with pytest.raises(InputError, match="grows without bound"):
        simulate(jobs_of("perfect"), 1.0, "srpt")
    with pytest.raises(InputError, match="at least 320 jobs"):
        simulate(jobs, 0.1, "fcfs", count=10)
    with pytest.raises(InputError, match="negative"):
        conditional_response_time(jobs, 0.1, "sjf", 0, [1.0], [-1.0])
