"""Hidden states in a real engine: the very ones of the model, in chunks, cached and resumed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.engine, pytest.mark.slow]
CHILD = Path(__file__).parents[1] / "support" / "hidden_states_child.py"
CLOSE = 5e-3  # float16 keeps three digits


@pytest.fixture(scope="module")
def compared() -> dict[str, Any]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    finished = subprocess.run(
        [sys.executable, str(CHILD)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    result: dict[str, Any] = json.loads(finished.stdout)
    return result


def test_every_decode_state_is_that_of_the_model(compared: dict[str, Any]) -> None:
    assert compared["layers"] == [0, 1, 2, 3, 4, 5]
    for name, request in compared["requests"].items():
        assert request["said"] == request["asked"]
        if name != "many9":
            assert request["ages"] == list(range(1, request["said"])), name
        assert request["dropped"] == 0
        assert request["decode"] < CLOSE, name


def test_a_sample_has_as_many_as_asked(compared: dict[str, Any]) -> None:
    request = compared["requests"]["many9"]
    assert len(request["ages"]) == len(set(request["ages"])) == 5


def test_a_prompt_in_chunks_is_pooled_whole(compared: dict[str, Any]) -> None:
    request = compared["requests"]["long"]
    assert compared["cached"]["long"] == 0
    assert request["mean"] < CLOSE
    assert request["last"] < CLOSE


def test_a_cached_prefix_is_left_out_of_the_mean(compared: dict[str, Any]) -> None:
    assert compared["cached"]["alike1"] >= 96
    for name in ("alike0", "alike1"):
        assert compared["requests"][name]["mean"] < CLOSE
        assert compared["requests"][name]["last"] < CLOSE


def test_preempted_requests_go_on_where_they_were(compared: dict[str, Any]) -> None:
    assert compared["resumed_in_decode"] > 0
    for name, request in compared["requests"].items():
        if name.startswith("many"):
            assert request["last"] < CLOSE, name
            assert request["mean"] < CLOSE, name
