"""The stand-in engine itself: stock vLLM gets through it, and broken memory does not."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler


def _asks(count: int) -> list[Ask]:
    rng = random.Random(0)
    return [
        Ask(
            f"r{i}",
            [2] * rng.randrange(1, 40) + [rng.randrange(2, 1000) for _ in range(rng.randrange(30))],
            answer=rng.randrange(1, 100),
            max_tokens=rng.choice([None, 40]),
            ignore_eos=rng.random() < 0.1,
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("model_runner", [1, 2])
@pytest.mark.parametrize("lag", [0, 1])
def test_stock_answers_are_whole(lag: int, model_runner: int, prefix_caching: bool) -> None:
    scheduler = build_scheduler(
        num_blocks=32,
        max_num_seqs=8,
        token_budget=64,
        asynchronous=bool(lag),
        model_runner=model_runner,
        prefix_caching=prefix_caching,
    )
    engine = SteppedEngine(scheduler, lag, check_memory=True)
    asks = [ask for ask in _asks(40) if not ask.ignore_eos or ask.max_tokens]
    for ask in asks:
        engine.add(ask)
    steps = engine.run()
    assert engine.answers == {ask.request_id: ask.whole_answer() for ask in asks}
    assert set(engine.finished.values()) == {"stop", "length"}
    assert any(step.preempted for step in steps)
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == 31


def test_blocks_freed_too_early_are_noticed() -> None:
    engine = SteppedEngine(build_scheduler(num_blocks=8, prefix_caching=False), check_memory=True)
    request = engine.add(Ask("a", [2] * 20, answer=60))
    for _ in range(3):
        engine.step()
    engine.scheduler.kv_cache_manager.free(request)
    engine.add(Ask("b", [3] * 60, answer=5))
    with pytest.raises(AssertionError):
        engine.run()
