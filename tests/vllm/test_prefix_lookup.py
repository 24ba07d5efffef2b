"""How much of a prompt is cached is found without going through its blocks, as vLLM would say."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.vllm.compat import schedulers


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("seed", range(2))
def test_the_cached_tokens_are_those_that_vllm_finds(seed: int, lag: int) -> None:
    rng = random.Random(seed)
    texts = [[rng.randrange(2, 900) for _ in range(600)] for _ in range(2)]
    scheduler = build_scheduler(
        num_blocks=90, max_num_seqs=6, token_budget=200, asynchronous=bool(lag)
    )
    engine = SteppedEngine(scheduler, lag)
    found = set()
    for step in range(300):
        if len(engine.live()) < 12:
            # Long prompts that begin alike, one block more or less; memory for two of them.
            begin = rng.choice(texts)[: rng.randrange(0, 600)]
            tail = [rng.randrange(2, 900) for _ in range(rng.randrange(1, 40))]
            engine.add(Ask(f"r{step}", begin + tail, rng.randrange(1, 60)))
        if rng.random() < 0.05:
            engine.abort(rng.sample(engine.live(), 1))
        engine.step()
        for request in scheduler.waiting:
            cached = schedulers.cached_tokens(scheduler, request)
            assert cached == scheduler.kv_cache_manager.get_computed_blocks(request)[1]
            found.add(cached // scheduler.block_size)
    assert len(found) > 15


def test_without_prefix_caching_nothing_is_cached() -> None:
    scheduler = build_scheduler(prefix_caching=False, max_num_seqs=1)
    engine = SteppedEngine(scheduler)
    for name in ("first", "second"):
        engine.add(Ask(name, [7] * 100, 5))
    engine.step()
    (waiting,) = scheduler.waiting
    assert schedulers.cached_tokens(scheduler, waiting) == 0
