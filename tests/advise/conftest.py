"""What tests of sweeps and of the tuner share: traffic, prompts, and a smaller choice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lengthwise.advise import tune
from lengthwise.advise.sweep import Workload
from lengthwise.workload.arrivals import synthetic_trace


@pytest.fixture(scope="package")
def workload() -> Workload:
    """More than 8 slots can serve, at a load above 1."""
    return Workload(synthetic_trace(200, 5.0, mean_prompt=80, mean_output=80, sigma=0.9, seed=4))


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """A table of 60 prompts, which say how long their answers are."""
    rows = [
        {"prompt": f"List {n} facts about {word}.", "response_tokens": 10 + 20 * n}
        for n in range(1, 11)
        for word in ("rain", "iron", "owls", "salt", "jazz", "rope")
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A smaller grid, where it does not matter what is on it."""
    monkeypatch.setattr(tune, "_OVERTAKES", ((1.0, 0.0), (1.0, 0.5)))
    monkeypatch.setattr(tune, "_BLENDS", (1.0, 0.7))
