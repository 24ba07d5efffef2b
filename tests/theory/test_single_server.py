"""The simulated server against a plain one and a schedule by hand; memory, seeds and intervals."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lengthwise.theory import (
    exponential,
    noisily_predicted,
    perfectly_predicted,
    simulate,
)
from lengthwise.theory.response_times import play

Array = NDArray[np.float64]

CUTOFFS = (0.0, 0.2, 0.5, 0.8, 1.0)


def play_plainly(
    arrivals: Array, sizes: Array, predictions: Array, c: float
) -> list[tuple[float, int]]:
    """The rule with lists and no heap: response times and preemptions."""
    age = [0.0] * len(sizes)
    done: dict[int, float] = {}
    preempted = [0] * len(sizes)
    present: list[int] = []
    running: int | None = None
    now = 0.0
    events = [*arrivals, math.inf]
    for arrived, event in enumerate(events):
        while present:
            if running is None:
                running = min(present, key=lambda job: (predictions[job] - age[job], job))
            need = sizes[running] - age[running]
            if now + need > event:
                age[running] += event - now
                break
            now += need
            done[running] = now - arrivals[running]
            present.remove(running)
            running = None
        now = event
        if arrived == len(arrivals):
            break
        present.append(arrived)
        if running is not None and age[running] < c * predictions[running]:
            best = min(present, key=lambda job: (predictions[job] - age[job], job))
            if predictions[best] - age[best] < predictions[running] - age[running]:
                preempted[running] += 1
                running = best
    return [(done[job], preempted[job]) for job in range(len(sizes))]


@given(st.integers(0, 10**6), st.sampled_from([0.0, 0.3, 0.8, 1.0]), st.floats(0.3, 1.5))
@settings(deadline=None, max_examples=60)
def test_the_simulation_plays_the_rule(seed: int, c: float, load: float) -> None:
    random = np.random.default_rng(seed)
    arrivals = np.cumsum(random.standard_exponential(60) / load)
    sizes = random.standard_exponential(60)
    predictions = sizes * random.choice([0.5, 1.0, random.random() * 4], 60)
    response, preemptions, memory = play(arrivals, sizes, predictions, c)
    expected = play_plainly(arrivals, sizes, predictions, c)
    assert response == pytest.approx([each[0] for each in expected])
    assert preemptions.tolist() == [each[1] for each in expected]
    # Alone a job's age grows to its size; paused it stays what it is, for a part of its response.
    pauses = memory - sizes**2 / 2
    assert np.all(pauses >= -1e-12)
    assert np.all(pauses <= sizes * (response - sizes) + 1e-9)
    assert np.all((pauses > 1e-12) <= (preemptions > 0))


def test_a_schedule_by_hand() -> None:
    arrivals, sizes = np.array([0.0, 1.0, 5.0]), np.array([4.0, 1.0, 1.0])
    # Job 1 preempts job 0 at age 1 and gives back at 2; job 0 ends at 5, when job 2 arrives.
    response, preemptions, memory = play(arrivals, sizes, sizes, 1.0)
    assert response.tolist() == [5.0, 1.0, 1.0]
    assert preemptions.tolist() == [1.0, 0.0, 0.0]
    assert memory.tolist() == [4.0**2 / 2 + 1.0, 0.5, 0.5]
    # With c = 0.2 its cutoff is 0.8.
    assert play(arrivals, sizes, sizes, 0.2)[0].tolist() == [4.0, 4.0, 1.0]


def test_memory_and_preemptions() -> None:
    jobs = perfectly_predicted(exponential())
    runs = [simulate(jobs, 0.7, "trail", c, count=200_000, seed=2) for c in CUTOFFS]
    fcfs = simulate(jobs, 0.7, "fcfs", count=200_000, seed=2)
    assert fcfs.preemptions_per_job == runs[0].preemptions_per_job == 0
    # What is never preempted holds memory for its own time only: λ E[X²] / 2.
    assert fcfs.mean_age_in_memory == pytest.approx(0.7, rel=0.03)
    assert runs[0].mean_age_in_memory == pytest.approx(0.7, rel=0.03)
    for less, more in itertools.pairwise(runs):
        assert less.preemptions_per_job < more.preemptions_per_job
        assert less.mean_age_in_memory < more.mean_age_in_memory


def test_same_seed_same_result() -> None:
    jobs = noisily_predicted(exponential())
    done: list[int] = []
    first = simulate(jobs, 0.6, "srpt", count=9_600, seed=5, progress=done.append)
    assert first == simulate(jobs, 0.6, "srpt", count=9_600, seed=5)
    assert first != simulate(jobs, 0.6, "srpt", count=9_600, seed=6)
    assert first.jobs == 9_600
    assert done == list(range(1, 33))


def test_the_interval_covers_the_mean_about_as_often_as_it_says() -> None:
    jobs = perfectly_predicted(exponential(), limit=100)
    runs = [simulate(jobs, 0.5, "fcfs", count=32_000, seed=seed) for seed in range(100)]
    assert sum(run.low <= 2.0 <= run.high for run in runs) >= 95
