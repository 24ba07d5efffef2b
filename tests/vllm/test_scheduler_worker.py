"""A slow predictor beside the engine: steps never wait for it, whatever happens to its process."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.errors import InputError
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import Predictor
from lengthwise.settings import Settings, parse_settings
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import CheckedEngine
from tests.support.processes import is_gone
from tests.support.slow_predictor import Slow, worker_pid
from tests.support.waiting import wait_until

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., CheckedEngine]]:
    """Engines of one slot whose predictor, prompt-length, is taken for a slow one."""
    schedulers: list[Any] = []

    def loaded(spec: str, tokenizer: str | None = None) -> Predictor:
        return Slow() if spec == "prompt-length" else load_predictor(spec)

    def built(slots: int = 1, **settings: object) -> CheckedEngine:
        chosen = {"policy": "sjf", "predictor": "prompt-length", "max_overtakes": None, **settings}
        scheduler = build_scheduler(Scheduler, max_num_seqs=slots, lengthwise={"settings": chosen})
        schedulers.append(scheduler)
        return CheckedEngine(scheduler)

    monkeypatch.setattr("lengthwise.vllm.live_settings.load_predictor", loaded)
    yield built
    for scheduler in schedulers:
        scheduler.shutdown()


def step_until(engine: CheckedEngine, what: Callable[[], bool]) -> None:
    def holds() -> bool:
        if not what():
            engine.step()
        return what()

    wait_until(holds)


def ask(name: str, prompt: int, answer: int) -> Ask:
    return Ask(name, [7] * prompt, answer, hints={"lengthwise_true_tokens": answer})


def busy(engine: CheckedEngine) -> None:
    """Something that runs for long."""
    engine.add(ask("running", 8, 1900))
    engine.step()


def test_the_worker_decides_the_order(build: Callable[..., CheckedEngine]) -> None:
    engine = build()
    counters = engine.scheduler.counters
    busy(engine)
    for prompt in (40, 10, 30, 20):
        engine.add(ask(f"r{prompt}", prompt, 5))
    step_until(engine, lambda: counters.predictions == 5)
    engine.abort(["running"])
    engine.drain()
    assert list(engine.finished) == ["running", "r10", "r20", "r30", "r40"]
    assert counters.fallbacks == counters.shed_predictions == 0
    assert counters.late_predictions == 1  # that of the one which ran at once


def test_a_late_prediction_ranks_a_running_request_anew(
    build: Callable[..., CheckedEngine],
) -> None:
    engine = build()
    pid = worker_pid(engine)
    os.kill(pid, signal.SIGSTOP)
    busy(engine)
    row = engine.scheduler._live.table[engine.scheduler._live.row("running")]
    assert not row["predicted"]
    os.kill(pid, signal.SIGCONT)
    step_until(engine, lambda: engine.scheduler.counters.predictions == 1)
    assert row["predicted"]
    assert row["score"] == 8.0
    assert engine.scheduler.counters.late_predictions == 1


def test_a_worker_killed_in_mid_run_costs_no_request(build: Callable[..., CheckedEngine]) -> None:
    engine = build(slots=4)
    counters = engine.scheduler.counters
    for number in range(200):
        engine.add(ask(f"r{number}", 5 + number % 50, 3 + number % 7))
        if number == 100:
            os.kill(worker_pid(engine), signal.SIGKILL)
        engine.step()
    engine.drain()
    assert len(engine.finished) == 200
    wait_until(lambda: counters.worker_restarts == 1)
    before = counters.predictions
    engine.add(ask("after", 8, 1900))
    step_until(engine, lambda: counters.predictions == before + 1)


def test_overload_sheds_predictions_and_no_request(build: Callable[..., CheckedEngine]) -> None:
    engine = build(slots=16)
    os.kill(worker_pid(engine), signal.SIGSTOP)
    for number in range(1_200):
        engine.add(ask(f"r{number}", 5, 2))
    engine.drain()
    assert len(engine.finished) == 1_200
    counters = engine.scheduler.counters
    assert counters.predictions == 0
    assert counters.shed_predictions > 0
    assert counters.fallbacks == counters.shed_predictions


def test_a_stand_in_orders_until_the_worker_answers(build: Callable[..., CheckedEngine]) -> None:
    engine = build(stand_in="oracle")
    pid = worker_pid(engine)
    os.kill(pid, signal.SIGSTOP)
    busy(engine)
    for answer in (40, 10, 30, 20):
        engine.add(ask(f"r{answer}", 5, answer))
    engine.step()
    live = engine.scheduler._live
    assert live.table[live.row("r30")]["score"] == 300.0  # on the slow predictor's scale
    engine.abort(["running"])
    engine.drain()
    assert list(engine.finished) == ["running", "r10", "r20", "r30", "r40"]
    counters = engine.scheduler.counters
    assert counters.stand_ins == 5
    assert counters.predictions == counters.fallbacks == 0


def test_a_slow_stand_in_is_refused(build: Callable[..., CheckedEngine]) -> None:
    with pytest.raises(InputError, match="stand_in"):
        build(stand_in="prompt-length")


@pytest.mark.parametrize("key", ["predictor", "stand_in"])
def test_asking_the_server_itself_is_refused(key: str) -> None:
    settings = {"policy": "sjf", "predictor": "declared", key: "perception-only:http://x/v1"}
    with pytest.raises(InputError, match="lengthwise evaluate"):
        parse_settings(settings)


def test_other_settings_keep_the_worker_and_another_predictor_ends_it(
    build: Callable[..., CheckedEngine], tmp_path: Path
) -> None:
    engine = build()
    scheduler = engine.scheduler
    pid = worker_pid(engine)
    base = Settings(policy="sjf", predictor="prompt-length")
    scheduler._settings.offer(base.model_copy(update={"blend": 0.5}))
    engine.add(ask("a", 5, 3))
    engine.drain()
    assert worker_pid(engine) == pid
    scheduler._settings.offer(base.model_copy(update={"predictor": "oracle"}))
    scheduler._settings.settle()
    wait_until(lambda: is_gone(pid))
    before = scheduler.counters.predictions
    engine.add(ask("b", 5, 3))
    engine.drain()
    assert scheduler.counters.predictions == before + 1


def test_shutting_down_ends_the_worker(build: Callable[..., CheckedEngine]) -> None:
    engine = build()
    pid = worker_pid(engine)
    os.kill(pid, signal.SIGSTOP)  # even one that hangs
    engine.scheduler.shutdown()
    wait_until(lambda: is_gone(pid))


def test_a_worker_that_does_not_start_is_one_line(
    build: Callable[..., CheckedEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lengthwise.vllm.live_settings.load_predictor", lambda *a, **k: Slow())
    with pytest.raises(InputError, match="did not start") as caught:
        build(predictor="no-such")
    assert "\n" not in str(caught.value)
