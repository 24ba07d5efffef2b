"""What a step costs, measured while serving: the prices that preemption is decided with."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled

_MEMORY: Final = 0.998  # weight kept per step: about the last 500 steps count
_REFIT_EVERY: Final = 32
_OUTLIER: Final = 5.0  # steps this many times longer than usual are not the model's doing


class StepTime:
    """Fits step time = fixed + per_prefill_token · p + per_decode_token · d by least squares.

    Older steps fade exponentially. Before enough steps have been seen, and for a term that the
    data cannot tell (no prefill yet, say), a weak prior stands in, and no term is negative.

    Args:
        fixed_s: prior for the cost of a step, seconds.
        prefill_s_per_token: prior for a prefilled token, seconds.
        decode_s_per_token: prior for a decoded token, seconds.
    """

    def __init__(
        self,
        fixed_s: float = 2e-3,
        prefill_s_per_token: float = 3e-5,
        decode_s_per_token: float = 1e-4,
    ) -> None:
        self._prior = np.array([fixed_s, prefill_s_per_token, decode_s_per_token])
        self._cost = self._prior.copy()
        # The prior weighs as much as a few observations in each direction.
        scale = np.diag([2.0, 2.0 * 64.0**2, 2.0 * 8.0**2])
        self._gram = scale.copy()
        self._moment = scale @ self._prior
        self._recent: list[tuple[int, int, float]] = []  # steps seen since the last fit
        self._mean_s = 0.0
        self._mean_tokens = 0.0
        self._steps = 0

    def observe(self, prefill_tokens: int, decode_tokens: int, seconds: float) -> None:
        """Count one finished step. Nonsense (a clock that ran backwards) is ignored."""
        if not 0.0 < seconds < 60.0:
            return
        if self._steps > 16 and seconds > _OUTLIER * self._mean_s:
            return
        weight = max(1.0 - _MEMORY, 1.0 / (self._steps + 1))
        self._mean_s += weight * (seconds - self._mean_s)
        self._mean_tokens += weight * (prefill_tokens + decode_tokens - self._mean_tokens)
        self._recent.append((prefill_tokens, decode_tokens, seconds))
        self._steps += 1
        if self._steps % _REFIT_EVERY == 0:
            _accumulate(self._gram, self._moment, np.array(self._recent, dtype=np.float64))
            self._recent.clear()
            solution = np.linalg.lstsq(self._gram, self._moment, rcond=None)[0]
            self._cost = np.maximum(solution, 0.05 * self._prior)

    def decode_s(self, running: int) -> float:
        """Seconds of a step in which `running` requests decode one token each."""
        return float(self._cost[0] + self._cost[2] * running)

    @property
    def prefill_s_per_token(self) -> float:
        """Seconds that one more prefilled token adds to a step."""
        return float(self._cost[1])

    @property
    def tokens_per_step(self) -> float:
        """Tokens whose KV is written in a step, on average: how fast free blocks are reused."""
        return self._mean_tokens

    @property
    def steps(self) -> int:
        """Steps observed so far."""
        return self._steps


@compiled
def _accumulate(
    gram: NDArray[np.float64], moment: NDArray[np.float64], steps: NDArray[np.float64]
) -> None:
    """Fade the normal equations and add observations: prefill tokens, decode tokens, seconds."""
    for k in range(len(steps)):
        features = (1.0, steps[k, 0], steps[k, 1])
        for i in range(3):
            moment[i] = _MEMORY * moment[i] + steps[k, 2] * features[i]
            for j in range(3):
                gram[i, j] = _MEMORY * gram[i, j] + features[i] * features[j]
