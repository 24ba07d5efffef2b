"""M/G/1 simulated: one server, jobs one at a time, preemption free.

It plays the rule of `disciplines` event by event and shares nothing else with the formulas, which
it is there to check. It also measures what has no closed form: preemptions, and the memory that
jobs hold, taken as their age (as KV grows with each token).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from lengthwise.compiled import compiled
from lengthwise.errors import InputError
from lengthwise.intervals import t_margin
from lengthwise.theory.disciplines import make_queue
from lengthwise.theory.laws import Array, JobLaw

REPLICATIONS: Final = 32
LEAST_JOBS: Final = 10 * REPLICATIONS
_LEAD: Final = 1 / 8  #: jobs before and after those that are measured, as a share of them


@dataclass(frozen=True)
class Simulation:
    """What was measured."""

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
