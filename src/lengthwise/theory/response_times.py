"""Mean response times of one server under four disciplines, by formula and by simulation.

The disciplines are one rule with a parameter. A job of prediction r has rank r at first, and r − a
after a units of service. The lowest rank runs, an arrival may preempt. From age c · r on a job is
never preempted. (Shortest predicted remaining processing time with limited preemption, the rule of
TRAIL: arXiv 2410.01035.) Then

    trail   the rule itself
    srpt    c = 1: SRPT where predictions are perfect, SPRPT where they are not
    sjf     c = 0, by which the limit c → 0 from above is meant: a job that has been started is
            never preempted. (At c = 0 itself even a job that never ran would count as past its
            cutoff, and the order would be that of arrival.)
    fcfs    sjf where all predictions are alike; ties go to whoever arrived first

The formula is M/G/1 in closed form, by the SOAP analysis (Scully et al. 2018). For a job of size x
and prediction r, with λ the rate of arrivals, g the joint law of size y and prediction t, ρ(r) the
load of the jobs that are predicted shorter than r and ρ⁺(r) that of the jobs predicted r or shorter
(they differ only where predictions tie):

    E[T(x, r)] = λ E[(Y − m(T))²] / (2 (1 − ρ(r)) (1 − ρ⁺(r)))   until it is first served
               + ∫ from 0 to min(x, c r) of da / (1 − ρ(r − a))     while it can be preempted
               + max(x − c r, 0)                                    from then on

    m(t) = min(max(t − r, 0), c t, y)

m is how much of a job of size y and prediction t has been served when the tagged job can no longer
go before it. docs/background/theory.md derives this in steps. It is the lemma of TRAIL, where a0 is
read as each job's own cutoff; see `mean_response_time_tagged_cutoff`.

The simulation plays the rule event by event, jobs one at a time and preemption free. It shares
nothing else with the formula, which it is there to check. It also measures what has no closed form:
preemptions, and the memory that jobs hold, taken as their age (as KV grows with each token).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from lengthwise.compiled import compiled
from lengthwise.errors import InputError, unknown_name
from lengthwise.intervals import t_margin
from lengthwise.theory.laws import Array, JobLaw, job_samples

POLICIES: Final = ("fcfs", "sjf", "srpt", "trail")

REPLICATIONS: Final = 32  #: of a simulation
LEAST_JOBS: Final = 10 * REPLICATIONS
_LEAD: Final = 1 / 8  #: jobs before and after those that are measured, as a share of them


class Queue(NamedTuple):
    """What is analysed and simulated: jobs, how often they arrive, and the rule's parameter."""

    jobs: JobLaw
    rate: float  #: mean arrivals per unit of time
    load: float  #: share of time that the server is busy
    c: float


def make_queue(jobs: JobLaw, rate: float, policy: str, c: float) -> Queue:
    """Name a discipline by its policy; `c` matters to trail alone.

    Raises:
        InputError: the policy is unknown, a number is out of range, or the load is 1 or more.
    """
    if policy not in POLICIES:
        raise unknown_name("policy", policy, POLICIES)
    if not 0 <= c <= 1:
        raise InputError(f"c must be from 0 to 1, got {c:g}")
    if not (math.isfinite(rate) and rate > 0):
        raise InputError(f"the rate of arrivals must be a number above 0, got {rate:g}")
    load = rate * jobs.mean_size
    if load > 1 - 1e-9:  # a law's mean is a sum, rounded
        raise InputError(
            f"the load is {load:g}: from 1 on the queue grows without bound; "
            f"give a rate below {1 / jobs.mean_size:g}"
        )
    if policy == "fcfs":
        jobs = jobs.without_predictions()
    return Queue(jobs, rate, load, {"fcfs": 0.0, "sjf": 0.0, "srpt": 1.0, "trail": c}[policy])


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


@dataclass(frozen=True)
class Simulation:
    """What a simulation measured."""

    mean_response_time: float  # unit of the sizes
    low: float  # 99 % confidence interval of the mean response time
    high: float
    preemptions_per_job: float
    mean_age_in_memory: float  # mean over time of the summed ages of jobs that have been started
    jobs: int  # measured


def simulate(
    jobs: JobLaw,
    rate: float,
    policy: str,
    c: float = 0.8,
    *,
    count: int = 2_000_000,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Simulation:
    """Simulate a queue in independent replications.

    Each starts empty; the first and the last jobs are not measured, so that those measured find a
    queue as it is in the long run. At loads close to 1 that takes more jobs.

    Args:
        jobs: the law of sizes and predictions.
        rate: mean arrivals per unit of time.
        policy: one of POLICIES.
        c: for trail, the share of its prediction after which a job is never preempted, 0 to 1.
        count: jobs measured in all, at least LEAST_JOBS; rounded to a multiple of REPLICATIONS.
        seed: same seed and arguments, same result.
        progress: called with the number of replications done.

    Raises:
        InputError: see `make_queue`; or there are too few jobs.
    """
    queue = make_queue(jobs, rate, policy, c)
    if count < LEAST_JOBS:
        raise InputError(f"simulate at least {LEAST_JOBS:,} jobs, got {count:,}")
    measured = round(count / REPLICATIONS)
    lead = math.ceil(_LEAD * measured)
    means = np.empty((REPLICATIONS, 3))
    for number, child in enumerate(np.random.SeedSequence(seed).spawn(REPLICATIONS)):
        random = np.random.default_rng(child)
        arrivals = np.cumsum(random.standard_exponential(measured + 2 * lead) / rate)
        sizes, predictions = queue.jobs.draw(random, len(arrivals))
        outcomes = play(arrivals, sizes, predictions, queue.c)
        means[number] = [outcome[lead:-lead].mean() for outcome in outcomes]
        if progress is not None:
            progress(number + 1)
    response, preemptions, memory = means.mean(axis=0)
    margin = t_margin(means[:, 0], 0.99)
    return Simulation(
        mean_response_time=float(response),
        low=float(response) - margin,
        high=float(response) + margin,
        preemptions_per_job=float(preemptions),
        # What each job occupies, times how many arrive (the law H = λ G).
        mean_age_in_memory=rate * float(memory),
        jobs=measured * REPLICATIONS,
    )


@compiled
def play(arrivals: Array, sizes: Array, predictions: Array, c: float) -> tuple[Array, Array, Array]:
    """Serve jobs until all are done.

    Args:
        arrivals: their times, ascending, shape (n,).
        sizes: their needs, shape (n,).
        predictions: shape (n,).
        c: share of its prediction after which a job is never preempted; 0: it is never preempted.

    Returns:
        For each job its response time, how often it was preempted, and the integral of its age over
        the time from its first service to its end; shape (n,) each.
    """
    count = len(arrivals)
    response = np.zeros(count)
    preemptions = np.zeros(count)
    memory = np.zeros(count)
    age = np.zeros(count)
    paused_at = np.zeros(count)
    waiting = [(0.0, 0) for _ in range(0)]  # (rank, job): ties go to whoever arrived first
    running = -1
    resumed_at = 0.0
    for job in range(count + 1):
        now = arrivals[job] if job < count else np.inf
        while running >= 0:
            end = resumed_at + sizes[running] - age[running]
            if end > now:
                break
            response[running] = end - arrivals[running]
            memory[running] += sizes[running] ** 2 / 2
            running = -1
            if len(waiting) > 0:
                running = heapq.heappop(waiting)[1]
                memory[running] += age[running] * (end - paused_at[running])
                resumed_at = end
        if job == count:
            break
        if running < 0:
            running = job
            resumed_at = now
            continue
        served = age[running] + now - resumed_at
        rank = predictions[running] - served
        if served < c * predictions[running] and predictions[job] < rank:
            age[running] = served
            paused_at[running] = now
            preemptions[running] += 1
            heapq.heappush(waiting, (rank, running))
            running = job
            resumed_at = now
        else:
            heapq.heappush(waiting, (predictions[job], job))
    return response, preemptions, memory
