"""Pausing in vLLM's own scheduler: nobody is lost, nothing is read that is not one's own.

A million random steps: `LENGTHWISE_PAUSED_RUNS=42 pytest -k whatever` and this file.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.errors import InputError
from lengthwise.policy.prices import batch_s
from lengthwise.request import RUNNING
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import CheckedEngine
from tests.support.random_traffic import RandomTraffic

RUNS = int(os.environ.get("LENGTHWISE_PAUSED_RUNS", "1"))  # of each of 16 kinds
STEPS = 1500  # of each
SETTINGS = {
    "policy": "srpt",
    "predictor": "oracle",
    "preemption": "greedy",
    "pausing": True,
    "max_overtakes": None,
}


def scheduler(
    active: int = 2, most: int = 8, settings: dict[str, Any] | None = None, **more: Any
) -> Any:
    return build_scheduler(
        Scheduler,
        max_num_seqs=most,
        max_num_active_seqs=active,
        lengthwise={"settings": {**SETTINGS, **(settings or {})}},
        **more,
    )


def ask(name: str, answer: int, **more: Any) -> Ask:
    hints = {"lengthwise_true_tokens": answer}
    return Ask(name, [ord(name[0])] * 20, answer=answer, hints=hints, **more)


def paused(engine: SteppedEngine) -> list[str]:
    return [request.request_id for request in engine.scheduler._planner.paused]


def with_one_paused(lag: int = 0, **more: Any) -> SteppedEngine:
    """Two slots: a and b began, c came, and a is paused for it."""
    engine = SteppedEngine(scheduler(asynchronous=bool(lag), **more), lag, check_memory=True)
    engine.add(ask("a", 90))
    engine.add(ask("b", 40))
    for _ in range(9):
        engine.step()
    engine.add(ask("c", 20))
    engine.step()
    assert paused(engine) == ["a"]
    return engine


def assert_whole(engine: SteppedEngine, *but: str) -> None:
    engine.run()
    for name, asked in engine.asked.items():
        assert name in but or engine.answers[name] == asked.whole_answer(), name
    pool = engine.scheduler.kv_cache_manager.block_pool
    assert pool.get_num_free_blocks() == pool.num_gpu_blocks - 1
    assert not engine.scheduler.running
    assert not paused(engine)


@pytest.mark.parametrize("run", range(RUNS))
@pytest.mark.parametrize("prefix_caching", [False, True])
@pytest.mark.parametrize("num_blocks", [40, 2000])
@pytest.mark.parametrize("model_runner", [1, 2])
@pytest.mark.parametrize("lag", [0, 1])
def test_answers_are_whole_whatever_happens(
    lag: int, model_runner: int, num_blocks: int, prefix_caching: bool, run: int
) -> None:
    """Random arrivals, aborts, resets and pauses of the engine, ample and scarce blocks. The
    stand-in for the worker reads the KV of every request that runs, in each step."""
    engine = CheckedEngine(
        scheduler(
            active=4,
            most=12,
            settings={"max_stall_s": None},
            num_blocks=num_blocks,
            asynchronous=bool(lag),
            model_runner=model_runner,
            prefix_caching=prefix_caching,
        ),
        lag,
    )
    traffic = RandomTraffic(seed=lag + num_blocks + 10_000 * run)
    for _ in range(STEPS):
        traffic.act([engine])
        engine.step()
        assert len(engine.scheduler.running) <= 12
    traffic.settle([engine])
    engine.drain()
    assert engine.scheduler.counters.pauses > (0 if run else 50)
    if num_blocks == 2000:
        assert engine.scheduler.counters.memory_preemptions == 0


@pytest.mark.parametrize("model_runner", [1, 2])
@pytest.mark.parametrize("lag", [0, 1])
def test_a_swapped_block_is_noticed(lag: int, model_runner: int) -> None:
    engine = with_one_paused(lag, model_runner=model_runner)
    residents = engine.runner._residents
    residents["a"].blocks[0], residents["b"].blocks[0] = (
        residents["b"].blocks[0],
        residents["a"].blocks[0],
    )
    with pytest.raises(AssertionError, match="KV was overwritten"):
        engine.run()


@pytest.mark.parametrize("lag", [0, 1])
def test_nothing_is_computed_twice_while_blocks_last(lag: int) -> None:
    engine = with_one_paused(lag)
    steps = engine.run()
    assert not any(step.preempted for step in steps)
    assert engine.scheduler.counters.recomputed_tokens == 0
    assert engine.answers["a"] == engine.asked["a"].whole_answer()


@pytest.mark.parametrize("lag", [0, 1])
def test_a_paused_request_can_be_aborted(lag: int) -> None:
    engine = with_one_paused(lag)
    engine.abort(["a"])
    engine.add(ask("d", 30))
    assert_whole(engine, "a")


def test_a_paused_request_can_end_by_the_token_that_was_on_its_way() -> None:
    """With a lag its last token comes after it has been paused."""
    engine = SteppedEngine(scheduler(asynchronous=True), 1, check_memory=True)
    # What is said of a is wrong: it ends with the token that is computed when b comes.
    engine.add(Ask("a", [5] * 20, answer=9, hints={"lengthwise_true_tokens": 500}))
    engine.add(ask("b", 60))
    ended = False
    for k in range(40):
        if k == 9:
            engine.add(ask("c", 10))
        engine.step()
        ended |= "a" in engine.finished
    assert ended
    assert_whole(engine)


@pytest.mark.parametrize("preempt_all", [False, True])
def test_the_cache_can_be_reset_while_somebody_is_paused(preempt_all: bool) -> None:
    engine = with_one_paused()
    assert engine.scheduler.reset_prefix_cache(reset_running_requests=preempt_all) == preempt_all
    assert_whole(engine)


def test_a_pause_counts_to_the_lateness_of_whoever_loses_the_cache_in_it() -> None:
    """Nothing is ranked while nobody waits; the reset comes before anybody is ranked again."""
    engine = with_one_paused()
    for _ in range(3):
        engine.step()
    assert paused(engine) == ["a"]
    live = engine.scheduler._live
    facts = engine.scheduler._planner.facts
    before = {name: live.table[live.row(name)].copy() for name in ("a", "b")}
    facts.decoded += 5
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    for name, row in before.items():
        now = live.table[live.row(name)]
        runs = row["state"] == RUNNING
        done = facts.decoded - row["decoded_ranked"]
        assert now["decoded_meanwhile"] - row["decoded_meanwhile"] == runs * done
        assert now["decoded_ranked"] == facts.decoded
    assert before["b"]["state"] == RUNNING != before["a"]["state"]


def test_paused_requests_go_on_while_new_ones_are_held_back() -> None:
    from vllm.v1.core.sched.interface import PauseState

    engine = with_one_paused()
    engine.add(ask("d", 5))
    engine.scheduler.set_pause_state(PauseState.PAUSED_NEW)
    assert engine.scheduler.get_num_unfinished_requests() == 3
    for _ in range(200):
        engine.step()
    assert set(engine.finished) == {"a", "b", "c"}
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    assert_whole(engine)


def test_nothing_runs_while_the_engine_sleeps() -> None:
    from vllm.v1.core.sched.interface import PauseState

    engine = with_one_paused()
    engine.scheduler.set_pause_state(PauseState.PAUSED_ALL)
    for _ in range(20):
        assert not engine.step().scheduled
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    assert_whole(engine)


def test_an_error_within_a_step_loses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = with_one_paused()
    manager = engine.scheduler.kv_cache_manager

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("no blocks today")

    with monkeypatch.context() as broken:
        broken.setattr(manager, "allocate_slots", fail)
        with pytest.raises(RuntimeError, match="no blocks today"):
            engine.scheduler.schedule()
    assert {request.request_id for request in engine.scheduler.running} == {"a", "b", "c"}


def test_counts_tell_of_paused_requests() -> None:
    engine = with_one_paused(log_stats=True)
    here = engine.scheduler
    assert here.get_request_counts() == (3, 0)
    assert here.make_stats().num_running_reqs == 2
    assert here._report.gauges()["paused_requests"] == 1.0
    assert here._report.gauges()["running_requests"] == 2.0
    prices = here._planner.facts.step_time.counted
    assert here._report.gauges()["step_decode_seconds"] == batch_s(prices, 2)
    assert here.counters.pauses == 1
    inside = []
    allocate = here.kv_cache_manager.new_step_starts

    def note() -> None:
        gauges = here._report.gauges()  # a thread of metrics may ask at any time
        shown = gauges["running_requests"], gauges["paused_requests"]
        inside.append((len(here.running), here.get_request_counts(), shown))
        allocate()

    here.kv_cache_manager.new_step_starts = note
    engine.step()
    assert inside == [(2, (3, 0), (2.0, 1.0))]


@pytest.mark.parametrize("lag", [0, 1])
def test_adapters_of_those_that_run_stay_within_the_limit(lag: int) -> None:
    """vLLM asserts it: a is paused, b comes with another adapter, then both could go on."""
    engine = SteppedEngine(
        scheduler(active=2, max_loras=1, asynchronous=bool(lag)), lag, check_memory=True
    )
    engine.add(ask("a", 90, lora=1))
    for _ in range(9):
        engine.step()
    for name, lora in (("b", 2), ("c", 1), ("d", 2), ("e", 2)):
        engine.add(ask(name, 20 + ord(name) % 7, lora=lora))
    assert_whole(engine)


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("change", [{"pausing": False}, {"policy": "fcfs"}])
def test_who_goes_on_once_pausing_has_ended_brings_no_adapter_too_many(
    change: dict[str, Any], lag: int
) -> None:
    """A slot is free while c runs with another adapter: a, who was paused for it, goes on when that
    has ended, and before those that come with c's."""
    from lengthwise.settings import parse_settings

    engine = SteppedEngine(
        scheduler(active=2, max_loras=1, asynchronous=bool(lag)), lag, check_memory=True
    )
    engine.add(ask("a", 90, lora=1))
    engine.add(ask("b", 15))
    for _ in range(9):
        engine.step()
    engine.add(ask("c", 20, lora=2))
    for _ in range(2):
        engine.step()
    assert paused(engine) == ["a"]
    engine.scheduler.apply_now(parse_settings({**SETTINGS, **change}))
    for place in range(40):
        engine.add(ask(f"d{place}", 20, lora=2))
        engine.step()
    assert "c" in engine.finished
    assert "d0" not in engine.finished
    assert not paused(engine)
    assert_whole(engine)


def test_a_session_between_two_turns_keeps_its_place_in_the_worker() -> None:
    engine = SteppedEngine(scheduler(active=2, most=3), check_memory=True)
    engine.add(ask("s", 3, resumable=True, max_tokens=3))
    for _ in range(6):
        engine.step()
    assert engine.scheduler.num_waiting_for_streaming_input == 1
    for place in range(5):
        engine.add(ask(f"r{place}", 40 - 5 * place))
        for _ in range(3):
            engine.step()
            held = len(engine.scheduler.running) + 1
            assert held <= 3
    assert len(engine.finished) < 5
    engine.abort(["s"])
    assert_whole(engine, "s")


def test_a_stall_is_bounded() -> None:
    """Time is counted in steps here: a paused request goes on at the first look after its bound."""
    engine = SteppedEngine(scheduler(active=1, most=8, settings={"max_stall_s": 50.0}))
    here, now = engine.scheduler, [0.0]
    here.begin_anew(lambda: now[0])
    engine.add(ask("a", 400))
    ran: list[int] = []
    for step in range(900):
        now[0] = float(step)
        if step % 10 == 9:
            engine.add(ask(f"r{step}", 11))
        done = engine.step()
        if any(name == "a" for name, _ in done.scheduled):
            ran.append(step)
    gaps = [after - before for before, after in pairwise(ran)]
    assert max(gaps) > 20
    assert max(gaps) <= 50 + 8


def test_settings_can_change_while_somebody_is_paused() -> None:
    from lengthwise.settings import parse_settings

    for change in ({"pausing": False}, {"policy": "fcfs"}, {"preemption": "never"}):
        engine = with_one_paused()
        engine.add(ask("d", 30))
        engine.scheduler.apply_now(parse_settings({**SETTINGS, **change}))
        assert_whole(engine)


def test_who_is_paused_when_pausing_ends_makes_way_for_nobody() -> None:
    """It goes on when a slot is free, and only those that run are preempted from then on."""
    from lengthwise.settings import parse_settings

    engine = with_one_paused()
    scheduler = engine.scheduler
    scheduler.apply_now(parse_settings({**SETTINGS, "pausing": False}))
    arrivals = {8: "d", 16: "e", 20: "f"}
    for step in range(40):
        if step in arrivals:
            engine.add(ask(arrivals[step], 4))
        engine.step()
        rest = paused(engine)
        runs = [one.request_id for one in scheduler.running if one.request_id not in rest]
        assert len(runs) <= 2
        states = scheduler._live.table["state"]
        assert all(states[scheduler._live.row(name)] == RUNNING for name in runs)
    assert scheduler.counters.preemptions > 0
    assert scheduler.counters.memory_preemptions == 0, "memory is ample"
    assert_whole(engine)


def test_where_nobody_can_be_paused_it_is_said_in_one_line() -> None:
    with pytest.raises(InputError, match="--max-num-seqs 16 --max-num-active-seqs 8"):
        scheduler(active=8, most=8)
    with pytest.raises(InputError, match="several groups"):
        scheduler(kv_groups=2)
    with pytest.raises(InputError, match="start with --probe DIR"):
        scheduler(settings={"peek": True})
    with pytest.raises(InputError, match="set pausing, too"):
        scheduler(settings={"peek": True, "pausing": False})
    with pytest.raises(InputError, match="max_stall_s"):
        scheduler(settings={"max_stall_s": 0})
    engine = SteppedEngine(
        scheduler(active=8, most=8, settings={"pausing": "auto", "peek": "auto"})
    )
    for place in range(30):
        engine.add(ask(f"r{place}", 10 + place))
        engine.step()
    assert_whole(engine)
    assert engine.scheduler.counters.pauses == 0
