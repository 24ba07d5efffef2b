"""`StepCost.linear` as a fit by least squares sees it: a ramp between each two bends."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_FEWEST: Final = 50  # steps between two bends, to tell a slope from noise
_FACTOR: Final = 1.4  # at least, from one bend to the next


def bends_of(tokens: Floats) -> Floats:
    """Where a curve through steps of so many tokens may bend; shape [k], k above 2, or empty.

    Args:
        tokens: of each step, shape [n].
    """
    ordered = np.sort(tokens[tokens >= 1.0])
    if len(ordered) == 0:
        return np.empty(0)
    bends, behind = [ordered[0]], 0
    while behind + _FEWEST < len(ordered):
        place = max(
            int(np.searchsorted(ordered, _FACTOR * bends[-1])),
            behind + _FEWEST,
        )
        if place >= len(ordered):
            break
        bends.append(ordered[place])
        behind = int(np.searchsorted(ordered, ordered[place], side="right"))
    if ordered[-1] > bends[-1]:
        bends[-1 if len(bends) > 1 and len(ordered) - behind < _FEWEST else len(bends) :] = [
            ordered[-1]
        ]
    return np.array(bends) if len(bends) > 2 else np.empty(0)


def ramps(tokens: Floats, bends: Floats) -> Floats:
    """Columns of a fit, shape [n, k − 1]: how much of each stretch between bends a step covers.

    Costs of them that are not negative make a curve that never falls. The last goes on.
    """
    starts, widths = bends[:-1], np.diff(bends)
    covered: Floats = np.clip(tokens[:, None] - starts, 0.0, None)
    covered[:, :-1] = np.minimum(covered[:, :-1], widths[:-1])
    return covered


def knots_from(bends: Floats, slopes: Floats) -> tuple[tuple[int, float], ...]:
    """Knots of a curve that is 0 at the first bend.

    Args:
        bends: shape [k].
        slopes: seconds a token between them, shape [k − 1].
    """
    seconds = np.concatenate([[0.0], np.cumsum(slopes * np.diff(bends))])
    return tuple((int(n), float(value)) for n, value in zip(bends, seconds, strict=True))
