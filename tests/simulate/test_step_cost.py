"""What a step costs: files of costs, and the same seconds by compiled and by plain code."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.simulate.engine import StepCost, read_cost, step_seconds

AFFINE = StepCost(7e-3, 32e-6, 32e-6, 0.04e-6)
BENT = replace(AFFINE, linear=((1, 2e-3), (8, 2e-3), (16, 3e-3), (64, 9e-3)))


def test_costs_that_no_engine_has_are_refused(tmp_path: Any) -> None:
    for bad in (-1.0, float("nan"), float("inf"), 10**400, True):
        with pytest.raises(InputError, match="prefill_s"):
            StepCost(1e-3, bad, 1e-6)
    with pytest.raises(InputError, match="no time"):
        StepCost(0.0, 1.0, 0.0)
    AFFINE.write(tmp_path / "cost.json", note="kept")
    assert read_cost(tmp_path / "cost.json") == AFFINE
    BENT.write(tmp_path / "cost.json")
    assert read_cost(tmp_path / "cost.json") == BENT
    bad_knots: Any
    for bad_knots in (
        ((1, 1.0),),
        ((2, 1.0), (2, 2.0)),
        ((1, 2.0), (2, 1.0)),
        ((0, 1.0), (2, 2.0)),
        ((1, 1.0), (float("inf"), 2.0)),
        ((1, 1.0), (10**400, 2.0)),
        ((1, 1.0), (2, 10**400)),
    ):
        with pytest.raises(InputError, match="knots"):
            replace(BENT, linear=bad_knots)
    for text, message in (
        ("{", "not JSON"),
        ("{}", "not a file of step costs"),
        ('{"schema": "lengthwise.cost/1", "cost": {"step_s": 1}}', "must hold"),
        (
            '{"schema": "lengthwise.cost/1", '
            '"cost": {"step_s": "x", "prefill_s": 0, "decode_s": 0}}',
            "not a number",
        ),
    ):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(InputError, match=message):
            read_cost(tmp_path / "bad.json")


def test_costs_of_the_first_version_are_still_read(tmp_path: Any) -> None:
    path = tmp_path / "old.json"
    path.write_text(
        '{"schema": "lengthwise.cost/1", "cost": {"step_s": 1, "prefill_s": 2, "decode_s": 3}}'
    )
    assert read_cost(path) == StepCost(1.0, 2.0, 3.0)


@pytest.mark.parametrize("cost", [AFFINE, BENT])
def test_compiled_and_plain_costs_are_the_same(cost: StepCost) -> None:
    generator = np.random.default_rng(0)
    work = generator.integers(0, 100, (50, 5)).astype(float)
    compiled = [
        step_seconds(cost.terms, int(p), int(d), int(kv), int(r), a) for p, d, kv, r, a in work
    ]
    assert compiled == pytest.approx(cost.seconds(work), rel=1e-12)


def test_linear_layers_are_flat_at_first_bend_at_their_knots_and_go_on_straight() -> None:
    tokens = np.array([0.0, 1, 2, 8, 16, 64, 128])
    expected = [2e-3, 2e-3, 2e-3, 2e-3, 3e-3, 9e-3, 17e-3]
    assert BENT.linear_s(tokens) == pytest.approx(expected)
    between = BENT.linear_s(np.arange(1.0, 65.0))
    assert (np.diff(between) >= 0).all()
    assert AFFINE.linear_s(tokens).tolist() == [0.0] * 7
