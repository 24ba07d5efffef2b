"""How much is kept of an answer, when its states are collected."""

from __future__ import annotations

import math

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from lengthwise.compare.state_collection import TRAIN_STATES, _request_bytes, _train_states
from lengthwise.probe.states import StatesMeta

GIB = 2**30
META = StatesMeta(
    model="some-8b",
    model_fingerprint="0",
    hidden_size=4096,
    layers=[8, 12, 16],
    layers_total=32,
    max_tokens=1024,
    seed=0,
    requests=0,
    complete=False,
)


def test_more_states_are_kept_where_there_is_room() -> None:
    fewest, most = TRAIN_STATES
    assert _train_states(META, 100, 8 * GIB) == most
    assert _train_states(META, 100_000, 8 * GIB) == fewest
    assert _train_states(META, 100_000, math.inf) == most
    between = _train_states(META, 2_000, 8 * GIB)
    assert fewest < between < most
    assert 2_000 * _request_bytes(META, between) <= 4 * GIB < 2_000 * _request_bytes(META, most)
