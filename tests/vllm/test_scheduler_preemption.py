"""When a running request makes way for a waiting one, and when it does not."""

from __future__ import annotations

import time
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import CheckedEngine
from tests.support.random_traffic import RandomTraffic

LOOK = 8  # the scheduler looks for swaps every so many steps


def _engine(
    lag: int = 0, preemption: str = "greedy", max_preemptions: int = 2, **options: Any
) -> CheckedEngine:
    settings = {
        "policy": "srpt",
        "predictor": "oracle",
        "preemption": preemption,
        "max_preemptions": max_preemptions,
        "max_overtakes": None,
    }
    scheduler = build_scheduler(
        Scheduler,
        asynchronous=bool(lag),
        lengthwise={"settings": settings},
        **{"max_num_seqs": 1, **options},
    )
    return CheckedEngine(scheduler, lag, max_preemptions=max_preemptions)


def _ask(name: str, answer: int, prompt_tokens: int = 4, **options: Any) -> Ask:
    hints = {"lengthwise_true_tokens": answer}
    return Ask(name, [100 + len(name)] * prompt_tokens, answer, hints=hints, **options)


def _steps(engine: CheckedEngine, count: int) -> None:
    for _ in range(count):
        engine.step()


@pytest.mark.parametrize("lag", [0, 1])
def test_a_shorter_newcomer_takes_the_slot(lag: int) -> None:
    engine = _engine(lag)
    engine.add(_ask("long", 200))
    _steps(engine, 3)
    engine.add(_ask("short", 5))
    _steps(engine, LOOK + 8)
    assert [(p.request_id, p.reason) for p in engine.preemptions] == [("long", "newcomer")]
    assert list(engine.finished) == ["short"]
    assert engine.scheduler.counters.preemptions == 1
    engine.drain()


@pytest.mark.parametrize("lag", [0, 1])
def test_a_longer_newcomer_waits(lag: int) -> None:
    engine = _engine(lag)
    engine.add(_ask("short", 40))
    _steps(engine, 3)
    engine.add(_ask("long", 200))
    engine.drain()
    assert engine.preemptions == []
    assert list(engine.finished) == ["short", "long"]


@pytest.mark.parametrize("bound", [0, 1, 3])
def test_no_request_is_preempted_more_often_than_the_bound(bound: int) -> None:
    engine = _engine(max_preemptions=bound)
    engine.add(_ask("long", 400))
    for number in range(5):
        _steps(engine, 3)
        engine.add(_ask(f"short{number}", 4))
        _steps(engine, 2 * LOOK)
    assert len(engine.preemptions) == bound
    engine.drain()


def test_never_means_never() -> None:
    engine = _engine(preemption="never", max_num_seqs=4, num_blocks=200)
    traffic = RandomTraffic(seed=2, disturbances=False)
    for _ in range(300):
        traffic.act([engine])
        engine.step()
    assert not [p for p in engine.preemptions if p.reason == "newcomer"]
    engine.drain()


def test_not_while_paused() -> None:
    from vllm.v1.core.sched.interface import PauseState

    engine = _engine()
    engine.add(_ask("long", 200))
    _steps(engine, 3)
    engine.add(_ask("short", 5))
    for state in (PauseState.PAUSED_NEW, PauseState.PAUSED_ALL):
        engine.scheduler.set_pause_state(state)
        _steps(engine, 2 * LOOK)
    assert engine.preemptions == []
    engine.scheduler.set_pause_state(PauseState.UNPAUSED)
    engine.drain()
    assert list(engine.finished) == ["short", "long"]


def test_not_while_prefills_are_throttled() -> None:
    engine = _engine()
    engine.add(_ask("long", 200))
    _steps(engine, 3)
    engine.add(_ask("short", 5))
    scheduler = engine.scheduler
    for _ in range(2 * LOOK):
        output = scheduler.schedule(throttle_prefills=True)
        scheduler.update_from_output(output, engine.runner.execute(output))
    assert engine.preemptions == []


def test_not_for_a_newcomer_that_does_not_fit() -> None:
    # Of 11 blocks the two hold 6 and 3. Even with the larger one's, 8 are too few for 9.
    engine = _engine(max_num_seqs=2, num_blocks=12, prefix_caching=False)
    engine.add(_ask("long", 60, prompt_tokens=80))
    engine.add(_ask("longer", 70, prompt_tokens=40))
    _steps(engine, 3)
    engine.add(_ask("short", 2, prompt_tokens=140))
    _steps(engine, 3 * LOOK)
    assert not [p for p in engine.preemptions if p.reason == "newcomer"]
    engine.drain()


def test_blocks_shared_with_another_request_are_not_counted_as_freed() -> None:
    # Both run on the same 6 prompt blocks, so the victim gives only its 1 or 2 own blocks back.
    engine = _engine(max_num_seqs=2, num_blocks=14)
    shared = [5] * 96
    for name in ("first", "second"):
        hints = {"lengthwise_true_tokens": 150}
        engine.add(Ask(name, shared, 60, hints=hints))
        _steps(engine, 2)
    engine.add(_ask("short", 2, prompt_tokens=120))
    _steps(engine, 3 * LOOK)  # `CheckedEngine` fails if somebody made way in vain
    engine.drain()


def test_not_for_a_newcomer_without_token_budget() -> None:
    engine = _engine(max_num_seqs=2, token_budget=8)
    engine.add(_ask("decoding", 200))
    _steps(engine, 3)
    engine.add(_ask("prefilling", 200, prompt_tokens=400))
    _steps(engine, 2)
    engine.add(_ask("short", 2))
    _steps(engine, 3 * LOOK)
    assert engine.preemptions == []
    engine.drain()


def test_not_a_request_whose_last_token_is_in_flight() -> None:
    engine = _engine(lag=1)
    engine.add(_ask("long", 200, max_tokens=LOOK - 1, ignore_eos=True))
    engine.step()
    engine.add(_ask("short", 2))
    engine.drain()
    assert engine.preemptions == []
    assert list(engine.finished) == ["long", "short"]


def test_a_preempted_request_comes_back_ahead_of_its_equals() -> None:
    # The oracle is told 50 for both, so that nothing but the place in the queue tells them apart.
    engine = _engine()
    hints = {"lengthwise_true_tokens": 50}
    engine.add(Ask("first", [5] * 4, 50, hints=hints))
    engine.step()
    engine.add(Ask("equal", [6] * 4, 50, hints=hints))
    engine.scheduler.reset_prefix_cache(reset_running_requests=True)
    assert [r.request_id for r in engine.scheduler.waiting] == ["first", "equal"]
    engine.drain()
    assert list(engine.finished) == ["first", "equal"]


@pytest.mark.parametrize("lag", [0, 1])
def test_abort_in_every_state(lag: int) -> None:
    engine = _engine(lag)
    engine.add(_ask("preempted", 200))
    _steps(engine, 3)
    engine.add(_ask("running", 60))
    _steps(engine, LOOK)
    engine.add(_ask("waiting", 300))
    engine.step()
    assert [p.request_id for p in engine.preemptions] == ["preempted"]
    assert [r.request_id for r in engine.scheduler.running] == ["running"]
    for name in ("preempted", "running", "waiting", "running", "nobody"):
        engine.abort([name])
        engine.check()
    engine.drain()
    assert set(engine.finished.values()) == {"abort"}
    assert len(engine.scheduler._live) == 0


@pytest.mark.parametrize("lag", [0, 1])
def test_a_steps_time_is_booked_on_the_step_that_ran(
    lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = _engine(lag)
    booked: list[tuple[int, int]] = []
    monkeypatch.setattr(
        engine.scheduler._planner.facts.step_time,
        "observe",
        lambda prefill, decode, seconds: booked.append((prefill, decode)),
    )
    engine.add(_ask("only", 8, prompt_tokens=30))
    plans = []
    for _ in range(6):
        engine.step()
        plans.append(engine.scheduler._planner.facts.work)
    planned = [(work["prefill_tokens"], work["decode_tokens"]) for work in plans if work]
    # Synchronous: between two plans runs the first of them. Asynchronous: the one before it.
    assert planned[0] == (30, 0)
    assert booked == planned[: len(planned) - 1 - lag]


@pytest.mark.parametrize("ahead", [0, 40])
def test_not_for_one_that_does_not_fit_where_kv_is_allocated_ahead(ahead: int) -> None:
    """As it is for the tokens that a draft model proposes."""
    engine = _engine(max_num_seqs=1, num_blocks=12, prefix_caching=False)
    engine.scheduler.num_lookahead_tokens = ahead
    engine.scheduler.begin_anew(time.monotonic)
    engine.add(_ask("long", 60, prompt_tokens=20))
    _steps(engine, 3)
    # Of 11 blocks it needs 10, and 12 with those ahead.
    engine.add(_ask("short", 2, prompt_tokens=150))
    _steps(engine, 2 * LOOK)  # `CheckedEngine` fails if somebody made way in vain
    assert len(engine.preemptions) == (0 if ahead else 1)
