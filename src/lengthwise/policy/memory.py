"""The KV memory that a set of requests will need at its worst.

With continuous batching each running request grows by a token a step and gives everything back
when it ends. Ordered by remaining length, longest first, the memory in use peaks at one of the
ends: when request i ends, requests 0 … i are all still there and each has grown by remaining_i
(Past-Future scheduling, arXiv 2507.10150, section 3).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled


@compiled
def predicted_peak(
    held: NDArray[np.float64], remaining: NDArray[np.float64], growth: float
) -> float:
    """The predicted peak of KV tokens.

    Args:
        held: tokens that each request holds now, shape [n].
        remaining: tokens that each is predicted to add, shape [n].
        growth: factor on the remaining tokens: 1 takes the prediction as it is, 0 ignores growth.

    Returns:
        Tokens.
    """
    order = np.argsort(-remaining)
    total_held = 0.0
    peak = 0.0
    for place in range(len(order)):
        i = order[place]
        total_held += held[i]
        peak = max(peak, total_held + (place + 1) * growth * remaining[i])
    return peak


@compiled
def admissible(
    running_held: NDArray[np.float64],
    running_remaining: NDArray[np.float64],
    new_held: NDArray[np.float64],
    new_remaining: NDArray[np.float64],
    growth: float,
    capacity: float,
) -> int:
    """How many of the new requests, taken in order, keep the predicted peak within capacity."""
    running = len(running_held)
    held = np.empty(running + len(new_held))
    remaining = np.empty(running + len(new_held))
    held[:running] = running_held
    remaining[:running] = running_remaining
    for taken in range(len(new_held)):
        held[running + taken] = new_held[taken]
        remaining[running + taken] = new_remaining[taken]
        end = running + taken + 1
        if predicted_peak(held[:end], remaining[:end], growth) > capacity:
            return taken
    return len(new_held)
