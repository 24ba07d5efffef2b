"""What queueing theory says: one server, jobs one at a time, preemption free (M/G/1).

    laws            who arrives: sizes and what is predicted for them
    response_times  fcfs, sjf, srpt and trail as one rule with a parameter: their mean response
                    times in closed form, and by simulation with what has no closed form

Imports nothing of Lengthwise but its errors, its intervals and its compiler.
"""

from lengthwise.theory.laws import (
    JobLaw,
    SizeLaw,
    deterministic,
    exponential,
    exponential_prediction,
    job_density,
    job_samples,
    lognormal,
    noisily_predicted,
    perfectly_predicted,
    size_samples,
    weibull,
)
from lengthwise.theory.response_times import (
    POLICIES,
    Simulation,
    conditional_response_time,
    mean_response_time,
    mean_response_time_tagged_cutoff,
    simulate,
)

__all__ = [
    "POLICIES",
    "JobLaw",
    "Simulation",
    "SizeLaw",
    "conditional_response_time",
    "deterministic",
    "exponential",
    "exponential_prediction",
    "job_density",
    "job_samples",
    "lognormal",
    "mean_response_time",
    "mean_response_time_tagged_cutoff",
    "noisily_predicted",
    "perfectly_predicted",
    "simulate",
    "size_samples",
    "weibull",
]
