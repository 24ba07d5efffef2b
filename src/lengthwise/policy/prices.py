"""What steps and preemptions cost, measured while serving, and TRAIL's cutoff c where it is "auto".

One record of STEP_TIME holds all that is kept of past steps: the prices that preemption is decided
with. The vLLM adapter has one, the simulator one for each engine; both count their steps by
`observe` and so know the same prices.

The cutoff is set by what a preemption costs and brings at the moment. A request whose prediction is
r tokens has (1 − c)·r steps to go at age a = c·r. A newcomer that takes its slot is shorter; where
it may be anything shorter, half of these steps are saved on average. The price is the recompute of
what was lost of P prompt and c·r answer tokens, which delays all N requests. The two are even where

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

import math
from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.request import RequestTable

_MEMORY: Final = 0.998  # weight kept per step: about the last 500 steps count
_REFIT_EVERY: Final = 32
_OUTLIER: Final = 5.0  # what a step takes beyond this many times the expected is not counted
_LEAST: Final = 0.05  # of its prior, that a price may fall to

_PRIOR: Final = (2e-3, 3e-5, 1e-4)  # s: a step, a prefilled token, a decoded one
# How much the prior weighs: as a few observations in each direction. It never fades, since what the
# data cannot tell for a long time (nothing is prefilled, or the batch is always full) is still
# unknown then.
_PRIOR_WEIGHT: Final = (2.0, 2.0 * 64.0**2, 2.0 * 8.0**2)

STEP_TIME: Final = np.dtype(
    [
        ("step_s", np.float64),  # the prices
        ("prefill_s", np.float64),  # of a token
        ("decode_s", np.float64),  # of a token
        ("mean_s", np.float64),  # of a step
        ("mean_tokens", np.float64),  # of a step: how fast free blocks are reused
        ("steps", np.int64),  # observed
        # The normal equations of the steps, older ones fading.
        ("gram", np.float64, (3, 3)),
        ("moment", np.float64, (3,)),
    ],
    align=True,
)


def new_step_times(count: int) -> NDArray[np.void]:
    """Records of STEP_TIME for engines that have not run yet, shape [count]."""
    times = np.zeros(count, STEP_TIME)
    times["step_s"], times["prefill_s"], times["decode_s"] = _PRIOR
    return times


@compiled
def observe(times: Any, prefill_tokens: int, decode_tokens: int, seconds: float) -> None:
    """Count a finished step. Nonsense (a clock that ran backwards) is ignored.

    Step time = step_s + prefill_s · prefilled tokens + decode_s · decoded tokens is fitted by least
    squares to past steps and a weak prior; no price is negative.

    Args:
        times: a record of STEP_TIME, written.
        prefill_tokens: what the step computed of prompts.
        decode_tokens: the answer tokens that it computed.
        seconds: what it took.
    """
    if not 0.0 < seconds < 60.0:
        return
    expected = times.step_s + times.prefill_s * prefill_tokens + times.decode_s * decode_tokens
    if times.steps > 16:
        # Cut, not left out: where all long prefills seem too long, it is the price that is wrong,
        # and each of them raises it.
        seconds = min(seconds, _OUTLIER * max(times.mean_s, expected))
    weight = max(1.0 - _MEMORY, 1.0 / (times.steps + 1))
    times.mean_s += weight * (seconds - times.mean_s)
    times.mean_tokens += weight * (prefill_tokens + decode_tokens - times.mean_tokens)
    features = (1.0, float(prefill_tokens), float(decode_tokens))
    for i in range(3):
        times.moment[i] = _MEMORY * times.moment[i] + seconds * features[i]
        for j in range(3):
            times.gram[i, j] = _MEMORY * times.gram[i, j] + features[i] * features[j]
    times.steps += 1
    if times.steps % _REFIT_EVERY == 0:
        _fit(times)


@compiled
def batch_s(times: Any, running: int) -> float:
    """Seconds of a step in which `running` requests decode one token each."""
    return float(times.step_s + times.decode_s * running)


@compiled
def prefill_weight(times: Any, running: int) -> float:
    """Output tokens that take as much of the engine's time as a prefilled one.

    A step gives a token to each running request, so a token's share of it is one over their number.
    """
    return float(times.prefill_s / (batch_s(times, running) / running))


@compiled
def _fit(times: Any) -> None:
    """Solve (gram + weight) · prices = moment + weight · prior, by Cholesky.

    Written out, since the last digits of a library's solution depend on the processor.
    """
    lower = np.zeros((3, 3))
    prices = np.empty(3)
    for i in range(3):
        for j in range(i + 1):
            value = times.gram[i, j]
            if i == j:
                value += _PRIOR_WEIGHT[i]
            for k in range(j):
                value -= lower[i, k] * lower[j, k]
            lower[i, j] = math.sqrt(value) if i == j else value / lower[j, j]
    for i in range(3):
        value = times.moment[i] + _PRIOR_WEIGHT[i] * _PRIOR[i]
        for k in range(i):
            value -= lower[i, k] * prices[k]
        prices[i] = value / lower[i, i]
    for i in range(2, -1, -1):
        value = prices[i]
        for k in range(i + 1, 3):
            value -= lower[k, i] * prices[k]
        prices[i] = value / lower[i, i]
    times.step_s = max(prices[0], _LEAST * _PRIOR[0])
    times.prefill_s = max(prices[1], _LEAST * _PRIOR[1])
    times.decode_s = max(prices[2], _LEAST * _PRIOR[2])


@compiled
def _observe(times: NDArray[np.void], prefill_tokens: int, decode_tokens: int, s: float) -> None:
    """`observe` of an array of one record, which numba takes less time to look at."""
    observe(times[0], prefill_tokens, decode_tokens, s)


class StepTime:
    """The prices of one engine, for code that is not compiled.

    What is observed is only noted, and counted once a price is asked for: so in few steps.
    """

    def __init__(self) -> None:
        self._times = new_step_times(1)
        self._noted: deque[tuple[int, int, float]] = deque()

    @property
    def times(self) -> NDArray[np.void]:
        """Array of one record of STEP_TIME, all steps counted."""
        while self._noted:
            _observe(self._times, *self._noted.popleft())
        return self._times

    @property
    def counted(self) -> Any:
        """The record of STEP_TIME as it was when a price was last asked for, for other threads."""
        return self._times[0]

    def observe(self, prefill_tokens: int, decode_tokens: int, seconds: float) -> None:
        """Count one finished step; see the function of that name."""
        self._noted.append((prefill_tokens, decode_tokens, seconds))


#: What is left of u from one look at the prices (every 8 steps) to the next.
FADES: Final = 0.999

_NEWEST_WEIGHT: Final = 0.02  # of a new observation: about the last 50 count


@compiled
def observed(before: float, seen: float) -> float:
    """A running mean after one more observation."""
    return before + _NEWEST_WEIGHT * (seen - before)


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
