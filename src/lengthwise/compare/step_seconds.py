"""How long the engine's steps take: fitted to one round, compared with another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PAUSE = 5.0  # steps so many times longer than usual are left out


class StepSeconds(NamedTuple):
    """The time of a step as a linear function of its work; s each."""

    step_s: float  #: of any step
    prefill_s: float  #: more for each prompt token
    decode_s: float  #: more for each answer token

    def of(self, prefill_tokens: float, decode_tokens: float) -> float:
        """Seconds that a step with these tokens takes."""
        return self.step_s + self.prefill_s * prefill_tokens + self.decode_s * decode_tokens


def fit_step_seconds(steps: Mapping[str, NDArray[np.float64]]) -> StepSeconds | None:
    """Fit to recorded steps by least squares, no part below zero; None where none was timed.

    Args:
        steps: columns `duration_s` (NaN where unknown), `prefill_tokens` and `decode_tokens`.
    """
    from scipy.optimize import nnls

    seconds = steps["duration_s"]
    timed = np.isfinite(seconds) & (seconds > 0)
    if not timed.any():
        return None
    # A pause of the machine is not the engine's doing.
    timed &= seconds < _PAUSE * np.median(seconds[timed])
    work = np.column_stack([np.ones(seconds.size), steps["prefill_tokens"], steps["decode_tokens"]])
    (step_s, prefill_s, decode_s), _ = nnls(work[timed], seconds[timed])
    return StepSeconds(float(step_s), float(prefill_s), float(decode_s))
