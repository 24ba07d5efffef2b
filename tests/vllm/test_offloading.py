"""KV offloaded to host memory by vLLM's own connector, whose worker is emulated: no GPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.policy.facts import new_facts
from lengthwise.policy.select import Swap, host_tokens, swap_gain
from lengthwise.request import REQUEST
from lengthwise.simulate.engine import EngineSettings, StepCost

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.emulate.driver import Asked, Served, VirtualEngine, open_virtual_engine
from lengthwise.emulate.link import BANDWIDTH, Offload
from lengthwise.vllm.compat import schedulers
from lengthwise.vllm.plan import Planner
from lengthwise.vllm.scheduler import LengthwiseMixin
from tests.support.step_facts import facts_of

COST = StepCost(7e-3, 1e-4, 1e-4, 1e-6)
SETTINGS = {"policy": "srpt", "predictor": "oracle", "pausing": True, "preemption": "greedy"}
GBIT_PER_S = 2.0
BLOCK_BYTES = 16 * 128 * 2 * 2  # tokens, of the made-up model, keys and values, bfloat16


def connector(**extra: object) -> dict[str, object]:
    wanted = {"cpu_bytes_to_use": 1 << 24, "offload_prompt_only": False, BANDWIDTH: GBIT_PER_S}
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {**wanted, **extra},
    }


def asked(count: int = 60) -> list[Asked]:
    generator = np.random.default_rng(0)
    return [
        Asked(
            prompt_ids=generator.integers(2, 1000, int(generator.integers(5, 120))).tolist(),
            output_tokens=int(generator.integers(1, 120)),
            arrival_s=0.1 * place,
        )
        for place in range(count)
    ]


def served(lag: int, link: dict[str, object] | None) -> tuple[list[Served], VirtualEngine]:
    """More requests than memory holds."""
    engine = EngineSettings(
        slots=4, max_seqs=16, kv_blocks=34, block_size=16, lag=lag, token_budget=128
    )
    with open_virtual_engine(
        COST, engine, longest=255, settings=SETTINGS, connector=link
    ) as virtual:
        return virtual.run(asked()), virtual


@pytest.mark.parametrize("lag", [0, 1])
def test_what_is_freed_is_loaded_and_not_computed_again(lag: int) -> None:
    _, plain = served(lag, None)
    answers, virtual = served(lag, connector())
    counters, freed = virtual.scheduler.counters, plain.scheduler.counters
    assert [len(each.token_s) for each in answers] == [each.output_tokens for each in asked()]
    assert counters.pauses > 0, "requests are paused beside the connector"
    assert counters.memory_preemptions > 0
    assert freed.memory_preemptions > 0
    assert counters.preemptions > 0, "where a pause finds no memory, a load does"
    assert freed.preemptions == 0
    # Of whole blocks nothing is lost: at most a block less a token, and one on its way, each time.
    assert counters.recomputed_tokens < 17 * (counters.memory_preemptions + counters.preemptions)
    assert freed.recomputed_tokens > 17 * freed.memory_preemptions
    manager = virtual.scheduler.kv_cache_manager
    assert manager.block_pool.get_num_free_blocks() == 34
    measured = float(virtual.scheduler._planner.facts.array["load_s"][0])
    assert measured == pytest.approx(BLOCK_BYTES / 16 / (GBIT_PER_S * 1e9 / 8))


def test_a_slot_that_is_kept_for_a_load_goes_to_no_newcomer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over a link that is so slow that steps come while KV is on its way."""
    plan, end = Planner.plan, LengthwiseMixin._end_step
    most = [0]  # newcomers that there are slots for
    looked = [0]

    def planned(planner: Planner, *args: Any) -> Any:
        decided = plan(planner, *args)
        scheduler = planner._scheduler
        kept, free = schedulers.ready_holders(scheduler), schedulers.free_slots(scheduler)
        waits = bool(planner.paused and scheduler.running and kept and free > 0)
        looked[0] += waits
        most[0] = max(free - kept, 0) if waits else len(scheduler.waiting)
        return decided

    def ended(scheduler: Any, output: Any) -> None:
        held = {each.request_id for each in scheduler.kv_holding_waiting}
        came = {each.request_id for each in scheduler.waiting.taken} - held
        assert len(came) <= most[0]
        end(scheduler, output)

    monkeypatch.setattr(Planner, "plan", planned)
    monkeypatch.setattr(LengthwiseMixin, "_end_step", ended)
    served(0, connector(**{BANDWIDTH: 0.003}))
    assert looked[0] > 0


@pytest.mark.parametrize("seed", range(4))
def test_whatever_the_engine_nothing_is_lost(seed: int) -> None:
    """Slow links, host memory that overflows, few places, memory that is looked ahead at."""
    generator = np.random.default_rng(seed)
    engine = EngineSettings(
        slots=int(generator.integers(2, 6)),
        max_seqs=int(generator.integers(7, 20)),
        kv_blocks=int(generator.integers(17, 50)),
        block_size=16,
        lag=seed % 2,
        token_budget=int(generator.choice([32, 128])),
    )
    settings = {
        **SETTINGS,
        "preemption": ("pays", "greedy")[seed // 2],
        "max_stall_s": float(generator.choice([0.2, 10.0])),
        "memory_growth": float(generator.choice([0.0, 1.0])),
    }
    link = connector(
        cpu_bytes_to_use=int(generator.choice([1 << 18, 1 << 20])),
        **{BANDWIDTH: float(generator.choice([0.02, 0.5]))},
    )
    with open_virtual_engine(
        COST, engine, longest=255, settings=settings, connector=link
    ) as virtual:
        answers = virtual.run(asked())
        assert virtual.scheduler._observers.contained.off == {}
        pool = virtual.scheduler.kv_cache_manager.block_pool
        assert pool.get_num_free_blocks() == engine.kv_blocks
        counters = virtual.scheduler.counters
        assert counters.pauses + counters.preemptions + counters.memory_preemptions > 0
    assert [len(each.token_s) for each in answers] == [each.output_tokens for each in asked()]


@pytest.mark.parametrize("lag", [0, 1])
def test_a_round_finds_nothing_of_the_one_before(lag: int) -> None:
    """Neither in host memory nor on the link, whose clock begins anew."""
    engine = EngineSettings(slots=4, kv_blocks=34, block_size=16, lag=lag, token_budget=128)
    with open_virtual_engine(COST, engine, longest=255, connector=connector()) as virtual:
        rounds = [virtual.run(asked()) for _ in range(2)]
    first, second = ([(each.token_s, each.cached_tokens) for each in answers] for answers in rounds)
    assert first == second


def test_a_swap_is_priced_by_the_load_of_whole_blocks() -> None:
    request = np.zeros(1, REQUEST)[0]
    request["prompt_tokens"], request["computed_tokens"] = 40, 90
    nothing = new_facts(1, token_budget=64, block_size=16)[0]
    limits = {"token_budget": 64, "block_size": 16, "host_blocks": 100}
    answers = new_facts(1, **limits, offloads_answers=True)[0]
    prompts = new_facts(1, **limits)[0]
    assert [host_tokens(facts, request) for facts in (nothing, prompts, answers)] == [0, 32, 80]

    def gain(host_blocks: int, host_tokens: float) -> float:
        prices = {"step_s": 1.0, "prefill_s": 0.01, "tokens_per_step": 16.0, "load_s": 0.002}
        facts = facts_of(0, running=1, waiting=2, host_blocks=host_blocks, **prices)
        swap = Swap(0, 1, 90.0, host_tokens, 8.0, free_blocks=0.0)  # the cache keeps nothing
        return swap_gain(facts[0], np.array([50.0]), np.array([10.0, 20.0]), swap)

    # Its 80 tokens delay nobody else, and are loaded instead of computed.
    assert gain(100, 80.0) - gain(0, 0.0) == pytest.approx(80 * (3 * 0.01 - 0.002))
    # What host memory overwrites until it comes back is lost there, too.
    assert gain(1, 80.0) == pytest.approx(gain(0, 0.0))


def test_copies_take_their_bytes_and_what_is_overwritten_waits_for_them() -> None:
    from types import SimpleNamespace

    def job(blocks: int, request: str = "r") -> Any:
        spec = SimpleNamespace(block_ids=list(range(blocks)))
        return SimpleNamespace(src_spec=spec, dst_spec=spec, req_id=request)

    def plan(stores: dict[int, Any], loads: dict[int, Any], flush: set[int] | None = None) -> Any:
        return SimpleNamespace(store_jobs=stores, load_jobs=loads, jobs_to_flush=flush)

    link = Offload(bytes_per_s=100.0, block_bytes=10)  # 0.1 s a block
    assert link.take(plan({1: job(10)}, {2: job(3, "a")}), 1.0) == 1.0
    assert link.next_end_s == pytest.approx(1.3), "the store begins with the next step"
    told = link.done(1.31)
    assert told.finished_recving == {"a"}
    assert told.kv_connector_worker_meta.completed_jobs == {2: 1}
    assert told.kv_connector_worker_meta.transfer_stats.load.bytes == 30
    assert link.take(plan({}, {}), 2.0) == 2.0
    assert link.take(plan({}, {}, {1}), 2.5) == pytest.approx(3.0), "until the copy is there"
    assert link.done(3.01).kv_connector_worker_meta.completed_jobs == {1: 1}
    assert link.done(9.0) is None


@pytest.mark.parametrize("memory", [None, 0, -1, "much"])
def test_without_host_memory_there_is_one_line(memory: object) -> None:
    engine = EngineSettings(slots=2, kv_blocks=34, block_size=16, token_budget=64)
    extra = {} if memory is None else {"cpu_bytes_to_use": memory}
    link = {**connector(), "kv_connector_extra_config": extra}
    with (
        pytest.raises(InputError, match="no host memory to offload to: name its size in GiB"),
        open_virtual_engine(COST, engine, longest=255, connector=link),
    ):
        raise AssertionError
