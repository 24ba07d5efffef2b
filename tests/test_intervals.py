"""How sure a figure is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lengthwise.intervals import t_interval


def test_intervals_are_those_of_student() -> None:
    # Mean 2, standard deviation 1, n = 4; t(0.975, 3) = 3.1824.
    low_high = t_interval(np.array([1.0, 2.0, 3.0, 2.0]))
    assert low_high is not None
    half = 3.18245 * math.sqrt(2.0 / 3.0) / 2.0
    assert low_high == pytest.approx((2.0 - half, 2.0 + half), rel=1e-4)
    assert t_interval(np.array([1.0])) is None
