"""What the tuner's tests share: traffic, and a smaller choice."""

from __future__ import annotations

import pytest

from lengthwise.advise import candidates
from lengthwise.advise.cell import Workload
from lengthwise.workload.synthetic import synthetic_trace


@pytest.fixture(scope="package")
def workload() -> Workload:
    """More than 8 slots can serve, at a load above 1."""
    return Workload(synthetic_trace(200, 5.0, mean_prompt=80, mean_output=80, sigma=0.9, seed=4))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller grid, where it does not matter what is on it."""
    monkeypatch.setattr(candidates, "_OVERTAKES", ((1.0, 0.0), (1.0, 0.5)))
    monkeypatch.setattr(candidates, "_BLENDS", (1.0, 0.7))
