"""TRAIL's cutoff c where it is "auto": set by what a preemption costs and brings at the moment.

A request whose prediction is r tokens has (1 − c)·r steps to go at age a = c·r. A newcomer that
takes its slot is shorter; where it may be anything shorter, half of these steps are saved on
average. The price is the recompute of what was lost of P prompt and c·r answer tokens, which delays
all N requests. The two are even where

    (1 − c) · r / 2 · step_s  =  N · u · (P + c · r) · prefill_s

with u, the share of preempted tokens that had to be computed again, as observed. With the price of
a token ρ = 2 · N · u · prefill_s / step_s that is at c = (1 − ρ · P / r) / (1 + ρ).

Under memory pressure the gain is not sure: the newcomer's context grows until it, or another, is
thrown out because blocks ran out. With m, the share of requests that leave the batch in that way,
as observed, a share 1 − m of the gain is kept, and

    c = (1 − m) · (1 − ρ · P / r) / (1 + ρ)            between 0 and 1

Where KV is plenty, m is 0, freed blocks survive in the prefix cache, u is small and c near 1. u
starts at 0 and fades while nobody is preempted: what was too dear once is tried again.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.request import RequestTable

#: What is left of u from one look at the prices (every 8 steps) to the next.
FADES: Final = 0.999

_WEIGHT: Final = 0.02  # of a new observation: about the last 50 count


@compiled
def observed(before: float, seen: float) -> float:
    """A running mean after one more observation."""
    return before + _WEIGHT * (seen - before)


@compiled
def share_lost(computed: int, lost: int) -> float:
    """u for one preempted request that has come back, between 0 and 1.

    Args:
        computed: tokens that it had computed when it was preempted.
        lost: how many of them it has to compute again.
    """
    return min(max(lost / max(computed, 1), 0.0), 1.0)


@compiled
def cutoff(
    prompt_tokens: float,
    predicted_tokens: float,
    requests: int,
    lost_share: float,
    thrown_out: float,
    step_s: float,
    prefill_s: float,
) -> float:
    """The cutoff c, between 0 and 1.

    Args:
        prompt_tokens: P, the mean of the running requests.
        predicted_tokens: r, the mean of their first predictions.
        requests: N, running and waiting.
        lost_share: u.
        thrown_out: m.
        step_s: seconds of a step in which all slots decode.
        prefill_s: seconds a prefilled token adds to a step.
    """
    price = 2.0 * requests * lost_share * prefill_s / max(step_s, 1e-9)
    c = (1.0 - price * prompt_tokens / max(predicted_tokens, 1.0)) / (1.0 + price)
    return min(max((1.0 - thrown_out) * c, 0.0), 1.0)


@compiled
def batch_cutoff(table: RequestTable, runners: NDArray[np.void], facts: Any) -> float:
    """`cutoff` for the requests that run, of which there is at least one.

    Args:
        table: array of REQUEST.
        runners: array of RUNNER.
        facts: a FACTS record.
    """
    prompt, predicted = 0.0, 0.0
    for runner in runners:
        prompt += table[runner.row].prompt_tokens
        predicted += table[runner.row].initial
    count = len(runners)
    return cutoff(
        prompt / count,
        predicted / count,
        facts.running + facts.waiting,
        facts.lost_share,
        facts.thrown_out,
        facts.step_s,
        facts.prefill_s,
    )
