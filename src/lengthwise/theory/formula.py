"""Mean response times of M/G/1 in closed form, by the SOAP analysis (Scully et al. 2018).

For a job of size x and prediction r, with λ the rate of arrivals, g the joint law of size y and
prediction t, ρ(r) the load of the jobs that are predicted shorter than r and ρ⁺(r) that of the jobs
predicted r or shorter (they differ only where predictions tie):

    E[T(x, r)] = λ E[(Y − m(T))²] / (2 (1 − ρ(r)) (1 − ρ⁺(r)))   until it is first served
               + ∫ from 0 to min(x, c r) of da / (1 − ρ(r − a))     while it can be preempted
               + max(x − c r, 0)                                    from then on

    m(t) = min(max(t − r, 0), c t, y)

m is how much of a job of size y and prediction t has been served when the tagged job can no longer
go before it. docs/background/theory.md derives this in steps. It is the lemma of TRAIL (arXiv
2410.01035), where a0 is read as each job's own cutoff; see `mean_response_time_tagged_cutoff`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.theory.disciplines import Queue, make_queue
from lengthwise.theory.laws import Array, JobLaw, job_samples


def mean_response_time(jobs: JobLaw, rate: float, policy: str, c: float = 0.8) -> float:
    """The mean time from a job's arrival to its end, in the unit of the sizes.

    Args:
        jobs: the law of sizes and predictions.
        rate: mean arrivals per unit of time.
        policy: one of POLICIES.
        c: for trail, the share of its prediction after which a job is never preempted, 0 to 1.

    Raises:
        InputError: see `make_queue`.
    """
    queue = make_queue(jobs, rate, policy, c)
    times = _response_times(queue, queue.jobs.sizes, queue.jobs.predictions)
    return float(queue.jobs.weights @ times)


def mean_response_time_tagged_cutoff(jobs: JobLaw, rate: float, c: float) -> float:
    """The other reading of the paper's lemma: the tagged job's cutoff c r serves for all jobs.

    That is not what the rule does; it is here to show by how much the readings differ. Takes time
    proportional to the square of the number of points: a thousand are plenty.

    Args:
        jobs: the law of sizes and predictions.
        rate: mean arrivals per unit of time.
        c: see `mean_response_time`.

    Raises:
        InputError: see `make_queue`.
    """

    def squared_work_ahead(jobs: JobLaw, c: float, r: Array) -> Array:
        squares = np.empty(len(r))
        for index, rank in enumerate(r):
            served = np.clip(jobs.predictions - rank, 0, np.minimum(c * rank, jobs.sizes))
            squares[index] = jobs.weights @ (jobs.sizes - served) ** 2
        return squares

    queue = make_queue(jobs, rate, "trail", c)
    times = _response_times(queue, jobs.sizes, jobs.predictions, squared_work_ahead)
    return float(jobs.weights @ times)


def conditional_response_time(
    jobs: JobLaw,
    rate: float,
    policy: str,
    c: float,
    sizes: ArrayLike,
    predictions: ArrayLike,
) -> Array:
    """The mean response times of jobs of given sizes and predictions.

    Args:
        jobs: the law of sizes and predictions of all jobs.
        rate: mean arrivals per unit of time.
        policy: one of POLICIES.
        c: see `mean_response_time`.
        sizes: shape (n,), above 0, in any order.
        predictions: shape (n,), not negative; fcfs does not look at them.

    Returns:
        Times in the unit of the sizes, shape (n,).

    Raises:
        InputError: see `make_queue` and `job_samples`.
    """
    queue = make_queue(jobs, rate, policy, c)
    asked = job_samples(sizes, predictions)
    if policy == "fcfs":
        asked = asked.without_predictions()
    return _response_times(queue, asked.sizes, asked.predictions)


def _squared_work_ahead(jobs: JobLaw, c: float, r: Array) -> Array:
    """E[(Y − m(T))²] for each r: of the jobs that go before one predicted r, what they still need.

    As a function of r, each job's y − m is flat up to `start`, grows with slope 1 up to r = t, and
    is y from there. So the sum of the squares is a continuous piecewise polynomial, whose value and
    slope are carried from corner to corner.
    """
    y, t, weight = jobs.sizes, jobs.predictions, jobs.weights
    start = np.maximum((1 - c) * t, t - y)
    flat = np.maximum(y - c * t, 0)
    corners = np.concatenate((start, t))
    order = np.argsort(corners)
    corners = corners[order]
    gaps = np.diff(corners)
    growing = np.cumsum(np.concatenate((weight, -weight))[order])
    slope = np.cumsum(2 * np.concatenate((weight * flat, -weight * y))[order])
    slope += 2 * _cumulated(growing[:-1] * gaps)
    value = weight @ flat**2 + _cumulated((slope[:-1] + growing[:-1] * gaps) * gaps)
    left = np.maximum(np.searchsorted(corners, r, side="right") - 1, 0)
    beyond = np.maximum(r - corners[left], 0)
    result: Array = value[left] + (slope[left] + growing[left] * beyond) * beyond
    return result


def _response_times(
    queue: Queue,
    x: Array,
    r: Array,
    squared_work_ahead: Callable[[JobLaw, float, Array], Array] = _squared_work_ahead,
) -> Array:
    """E[T(x, r)] for each pair of x and r."""
    jobs, c = queue.jobs, queue.c
    order = np.argsort(jobs.predictions)
    shortest_first = jobs.predictions[order]
    load = queue.rate * _cumulated((jobs.weights * jobs.sizes)[order])  # of the k shortest
    shorter = load[np.searchsorted(shortest_first, r, side="left")]
    not_longer = load[np.searchsorted(shortest_first, r, side="right")]
    work = queue.rate * squared_work_ahead(jobs, c, r) / (2 * (1 - not_longer))

    # 1 / (1 − ρ) is constant between predictions, so its integral is a polygon.
    corners = np.concatenate(([0.0], shortest_first))
    slopes = 1 / (1 - load)
    heights = _cumulated(np.diff(corners) * slopes[:-1])

    def integral(upper: Array) -> Array:
        left = np.searchsorted(corners, upper, side="right") - 1
        result: Array = heights[left] + (upper - corners[left]) * slopes[left]
        return result

    preemptible = np.minimum(x, c * r)
    result: Array = work / (1 - shorter) + integral(r) - integral(r - preemptible) + x - preemptible
    return result


def _cumulated(values: Array) -> Array:
    """The sums of the first 0, 1, …, n values, shape (n + 1,)."""
    return np.concatenate(([0.0], np.cumsum(values)))
