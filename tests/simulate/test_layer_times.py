"""Layer times: as measured, between what was measured, and derived from it."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest

from bench.support.layer_errors import HALVES, derived_errors, fit_errors, left_out_errors
from lengthwise.simulate.presets import (
    GPUS,
    Measured,
    derived_times,
    knots_of,
    layer_times,
    measured_times,
)

ROOT = Path(__file__).parents[2]
TABLE = ROOT.parent / "shared/data/linear_layer_times.csv"
MEASURED = sorted(measured_times()[1])


def test_the_bundled_times_are_the_published_ones() -> None:
    if not TABLE.is_file():
        pytest.skip(f"{TABLE} is not there")
    sys.path.insert(0, str(ROOT))
    from scripts.measured_layers import NAMES

    rows = 0
    with TABLE.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            key = Measured(row["gpu"], NAMES[row["model"]], int(row["tensor_parallel"]))
            tokens, seconds = measured_times()[1][key]
            place = int(np.searchsorted(tokens, int(row["tokens"])))
            assert tokens[place] == int(row["tokens"])
            assert 1000.0 * seconds[place] == pytest.approx(float(row["ms_per_layer"]))
            rows += 1
    assert rows == sum(len(tokens) for tokens, _ in measured_times()[1].values())


@pytest.mark.parametrize("half", HALVES)
def test_times_that_were_left_out_are_predicted(half: int) -> None:
    off = {each: np.abs(left_out_errors(each, half).relative) for each in MEASURED}
    assert np.concatenate([*off.values()]).mean() <= 0.05
    for each, errors in off.items():
        assert errors.mean() <= 0.10, each
    # Single times jump where kernels change: most are near, not all.
    assert (np.concatenate([*off.values()]) <= 0.10).mean() > 0.8


def test_rises_in_steps_are_nearer_than_a_smooth_curve() -> None:
    def mean_error(in_steps: float) -> float:
        errors = [left_out_errors(each, half, in_steps) for each in MEASURED for half in HALVES]
        return float(np.abs(np.concatenate([each.relative for each in errors])).mean())

    assert mean_error(0.5) < mean_error(0.0)


def test_measured_times_are_kept_but_where_they_fall() -> None:
    off = np.abs(np.concatenate([fit_errors(each).relative for each in MEASURED]))
    assert off.mean() < 0.01
    assert off.max() < 0.10


def test_a_derived_layer_is_near_where_the_pair_is_alike() -> None:
    source, errors = derived_errors(Measured("a100", "llama-3-8b", 1))
    assert source == Measured("a100", "llama-2-7b", 1)
    assert np.abs(errors.relative).mean() < 0.05
    every = [np.abs(derived_errors(each)[1].relative).mean() for each in MEASURED]
    assert float(np.mean(every)) < 0.10
    assert max(every) < 0.20


def test_a_faster_memory_shortens_small_steps_and_a_faster_chip_large_ones() -> None:
    assert GPUS["h200"].peak == GPUS["h100"].peak
    h100, h200 = (layer_times(gpu, "llama-2-7b", 1) for gpu in ("h100", "h200"))
    assert h200.derived
    assert h200.measured.gpu == "h100"
    faster = h200.seconds[0] / h100.seconds[0]
    ratio = GPUS["h100"].bandwidth / GPUS["h200"].bandwidth
    assert ratio < faster < ratio + 0.1  # launching does not shorten
    slope = [
        (each.seconds[-1] - each.seconds[-2]) / np.diff(each.tokens)[-1] for each in (h100, h200)
    ]
    assert slope[1] == pytest.approx(slope[0])


def test_deriving_a_measured_layer_from_itself_changes_nothing() -> None:
    for each in MEASURED:
        same = derived_times(each, each.gpu, each.model)
        assert not same.derived
        assert same.seconds is measured_times()[1][each][1]


def test_more_tokens_never_take_less_time() -> None:
    tokens, seconds = np.array([1.0, 64, 128, 160, 256, 384]), np.array([2.0, 4, 3, 5, 6, 8])
    knots = dict(knots_of(tokens, seconds))
    assert [knots[int(n)] for n in tokens] == pytest.approx([2.0, 3.5, 3.5, 5.0, 6.0, 8.0])
    even = dict(knots_of(tokens, seconds, in_steps=0.0))
    assert 3.5 < even[129] < knots[129] < 5.0
    assert max(knots) == 384
