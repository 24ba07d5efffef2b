"""From scores to tokens: monotone, ordered, and right on data of a known shape."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lengthwise.predict.calibration import (
    EXPECTED,
    HIGH,
    LOW,
    MEDIAN,
    SCORE,
    calibrate,
    calibrate_many,
    fit_calibration,
    isotonic,
)

finite = st.floats(-1e6, 1e6, allow_subnormal=False)
values_lists = arrays.arrays(np.float64, st.integers(1, 60), elements=finite)


@settings(deadline=None)
@given(values_lists, st.data())
def test_isotonic_is_scipys(values: np.ndarray, data: st.DataObject) -> None:
    from scipy.optimize import isotonic_regression

    weights = data.draw(arrays.arrays(np.float64, values.size, elements=st.floats(0.1, 10)))
    fitted = isotonic(values, weights)
    assert (np.diff(fitted) >= -1e-9).all()
    assert fitted == pytest.approx(isotonic_regression(values, weights=weights).x, abs=1e-6)


@settings(deadline=None)
@given(
    st.integers(1, 400).flatmap(
        lambda size: st.tuples(
            arrays.arrays(np.float64, size, elements=finite),
            arrays.arrays(np.int64, size, elements=st.integers(0, 20_000)),
        )
    )
)
def test_the_table_is_monotone_and_its_quantiles_are_ordered(
    rows: tuple[np.ndarray, np.ndarray],
) -> None:
    table = fit_calibration(rows[0], rows[1].astype(float))
    assert (np.diff(table, axis=0) >= -1e-9).all()
    assert (table[:, LOW] <= table[:, MEDIAN] + 1e-9).all()
    assert (table[:, MEDIAN] <= table[:, HIGH] + 1e-9).all()
    assert (table[:, EXPECTED:] >= 1).all()


@settings(deadline=None)
@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_longer_scores_give_longer_lengths(first: float, second: float) -> None:
    table = fit_calibration(np.arange(500.0), np.arange(500.0) ** 1.5)
    short, long = sorted((first, second))
    for less, more in zip(calibrate(short, table), calibrate(long, table), strict=True):
        assert less <= more + 1e-9


def test_interpolation_is_numpys() -> None:
    random = np.random.default_rng(0)
    table = fit_calibration(random.normal(size=2_000), random.exponential(100, 2_000))
    scores = random.normal(size=300) * 2
    lengths = calibrate_many(scores, table)
    for column in range(EXPECTED, HIGH + 1):
        wanted = np.interp(scores, table[:, SCORE], table[:, column])
        assert lengths[:, column - 1] == pytest.approx(wanted)


def test_quantiles_and_mean_of_a_known_distribution_are_found() -> None:
    random = np.random.default_rng(1)
    scores = random.uniform(size=50_000)
    lengths = random.exponential(100 + 400 * scores)
    table = fit_calibration(scores, lengths)
    fresh = random.uniform(size=50_000)
    truth = random.exponential(100 + 400 * fresh)
    expected, low, median, high = calibrate_many(fresh, table).T
    assert (truth < low).mean() == pytest.approx(0.1, abs=0.01)
    assert (truth < median).mean() == pytest.approx(0.5, abs=0.01)
    assert (truth < high).mean() == pytest.approx(0.9, abs=0.01)
    assert expected == pytest.approx(100 + 400 * fresh, rel=0.2)
