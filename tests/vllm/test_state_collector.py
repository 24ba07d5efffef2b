"""What is kept of a request's states while it runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import torch

from lengthwise.vllm.hidden_states import STATES_ID, STATES_KEPT
from lengthwise.vllm.state_collector import CollectedStates, StateCollector


def run(answer: int, kept: int | None, *, seed: int = 0, poison: int | None = None) -> Any:
    """Collect a request of 3 prompt tokens; the state at position p is p times a thousand."""
    collector = StateCollector(seed)
    hints: dict[str, object] = {STATES_ID: "7"} | ({} if kept is None else {STATES_KEPT: kept})
    computed = 0
    for step in range(answer):
        tokens = 3 if step == 0 else 1
        new = SimpleNamespace(
            req_id="x",
            prompt_len=3,
            num_computed_tokens=0,
            sampling_params=SimpleNamespace(extra_args=hints),
        )
        collector.begin(
            SimpleNamespace(
                finished_req_ids=set(),
                scheduled_new_reqs=[new] if step == 0 else [],
                scheduled_cached_reqs=SimpleNamespace(
                    req_ids=[] if step == 0 else ["x"],
                    num_computed_tokens=[] if step == 0 else [computed],
                ),
                num_scheduled_tokens={"x": tokens},
            )
        )
        rows = torch.arange(computed, computed + tokens, dtype=torch.float32)[:, None] * 1000.0
        if poison is not None and computed == poison:
            rows = rows * float("nan")
        collector.read(["x"], [0, tokens], [rows.repeat(1, 2)])
        computed += tokens
    (collected,) = collector.take(["7"])
    return collected


def test_all_states_are_kept_unless_a_number_is_given() -> None:
    collected: CollectedStates = run(6, None)
    assert collected.ages == [1, 2, 3, 4, 5]  # the state of the last token is never computed
    assert collected.states[0].tolist() == [[3000.0, 3000.0]]
    assert collected.prompt_mean is not None
    assert collected.prompt_last is not None
    assert collected.prompt_mean.tolist() == [[1000.0, 1000.0]]
    assert collected.prompt_last.tolist() == [[2000.0, 2000.0]]


def test_a_sample_is_as_large_as_asked_and_follows_from_the_seed() -> None:
    first = run(60, 8)
    assert len(first.ages) == len(set(first.ages)) == 8
    for age, state in zip(first.ages, first.states, strict=True):
        assert state[0, 0] == np.float16(min(1000.0 * (age + 2), 65504.0))
    assert run(60, 8).ages == first.ages
    assert run(60, 8, seed=1).ages != first.ages
    assert run(5, 8).ages == [1, 2, 3, 4]


def test_every_age_is_as_likely_as_the_next() -> None:
    counts = np.zeros(31)
    for seed in range(400):
        for age in run(31, 10, seed=seed).ages:
            counts[age] += 1
    assert counts[1:].min() > 90  # 133 expected of each, standard deviation 9.4
    assert counts[1:].max() < 180


def test_what_is_not_finite_is_left_out_and_counted_and_what_is_too_large_is_cut() -> None:
    collected = run(6, None, poison=5)
    assert collected.ages == [1, 2, 4, 5]
    assert collected.dropped == 1
    assert run(80, None).states[-1].max() == 65504.0
