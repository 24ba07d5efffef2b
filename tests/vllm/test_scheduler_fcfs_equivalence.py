"""Promise 6: policy=fcfs is stock vLLM, step for step.

The same random traffic goes to stock's scheduler and to ours. Every step must agree in all that a
model runner sees: which requests run, in which order, with how many tokens and which KV blocks,
who is preempted, and what is handed back.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import SteppedEngine
from tests.support.random_traffic import RandomTraffic
from tests.support.stock_and_ours import stock_and_ours

STEPS = 10_000  # each; twice with and twice without lag: 20,000 synchronous and 20,000 lagged

FCFS = {"policy": "fcfs"}
BLEND_0 = {"policy": "srpt", "predictor": "oracle", "blend": 0.0}
NO_PREDICTION = {"policy": "srpt", "predictor": "declared", "preemption": "greedy"}


def _engines(
    settings: dict[str, object],
    lag: int,
    prefix_caching: bool,
    policy: str = "fcfs",
    num_blocks: int = 40,
    model_runner: int = 1,
) -> tuple[SteppedEngine, SteppedEngine]:
    return stock_and_ours(
        settings,
        lag,
        num_blocks=num_blocks,
        max_num_seqs=6,
        token_budget=64,
        prefix_caching=prefix_caching,
        policy=policy,
        watermark=0.02,
        model_runner=model_runner,
    )


def _assert_alike(
    stock: SteppedEngine, ours: SteppedEngine, traffic: RandomTraffic, steps: int
) -> tuple[int, int]:
    """Step both and compare; returns the preemptions and the longest queue seen."""
    preemptions = longest_queue = 0
    for _ in range(steps):
        traffic.act([stock, ours])
        expected = stock.step()
        assert ours.step() == expected
        preemptions += len(expected.preempted)
        longest_queue = max(longest_queue, len(stock.scheduler.waiting))
    traffic.settle([stock, ours])
    assert ours.run() == stock.run()
    assert ours.finished == stock.finished
    assert ours.answers == stock.answers
    return preemptions, longest_queue


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("lag", [0, 1])
def test_fcfs_is_stock_step_for_step(lag: int, prefix_caching: bool) -> None:
    stock, ours = _engines(FCFS, lag, prefix_caching)
    preemptions, queue = _assert_alike(stock, ours, RandomTraffic(lag + 1), STEPS)
    assert preemptions > 50
    assert queue > 20


@pytest.mark.parametrize("settings", [BLEND_0, NO_PREDICTION], ids=["blend 0", "no prediction"])
@pytest.mark.parametrize("lag", [0, 1])
def test_other_settings_that_must_be_fcfs(settings: dict[str, object], lag: int) -> None:
    stock, ours = _engines(settings, lag, prefix_caching=True)
    preemptions, _ = _assert_alike(stock, ours, RandomTraffic(7), 2_000)
    assert preemptions > 5


def test_the_second_model_runner() -> None:
    stock, ours = _engines(FCFS, lag=1, prefix_caching=True, model_runner=2)
    _assert_alike(stock, ours, RandomTraffic(3), 1_000)
