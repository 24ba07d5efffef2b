"""What a step costs, measured while serving: the prices that preemption is decided with.

One record of STEP_TIME holds all that is kept of past steps. The vLLM adapter has one, the
simulator one for each engine; both count their steps by `observe` and so know the same prices.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled

_MEMORY: Final = 0.998  # weight kept per step: about the last 500 steps count
_REFIT_EVERY: Final = 32
_OUTLIER: Final = 5.0  # what a step takes beyond this many times the expected is not counted
_LEAST: Final = 0.05  # of its prior, that a price may fall to

_PRIOR: Final = (2e-3, 3e-5, 1e-4)  # s: a step, a prefilled token, a decoded one
# How much the prior weighs: as a few observations in each direction. It never fades, since what the
# data cannot tell for a long time (nothing is prefilled, or the batch is always full) is still
# unknown then.
_WEIGHT: Final = (2.0, 2.0 * 64.0**2, 2.0 * 8.0**2)

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
                value += _WEIGHT[i]
            for k in range(j):
                value -= lower[i, k] * lower[j, k]
            lower[i, j] = math.sqrt(value) if i == j else value / lower[j, j]
    for i in range(3):
        value = times.moment[i] + _WEIGHT[i] * _PRIOR[i]
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
