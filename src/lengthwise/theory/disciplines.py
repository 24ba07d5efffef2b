"""The four disciplines: one rule with a parameter.

A job of prediction r has rank r at first, and r − a after a units of service. The lowest rank runs,
an arrival may preempt. From age c · r on a job is never preempted. (Shortest predicted remaining
processing time with limited preemption, the rule of TRAIL: arXiv 2410.01035.) Then

    trail   the rule itself
    srpt    c = 1: SRPT where predictions are perfect, SPRPT where they are not
    sjf     c = 0, by which the limit c → 0 from above is meant: a job that has been started is
            never preempted. (At c = 0 itself even a job that never ran would count as past its
            cutoff, and the order would be that of arrival.)
    fcfs    sjf where all predictions are alike; ties go to whoever arrived first
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

from lengthwise.errors import InputError, unknown_name
from lengthwise.theory.laws import JobLaw

POLICIES: Final = ("fcfs", "sjf", "srpt", "trail")


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
