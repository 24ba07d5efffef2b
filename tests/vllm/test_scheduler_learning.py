"""The length log and the tau floor, in vLLM's own scheduler."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.predict.prediction import Prediction, Prompt
from lengthwise.vllm import Scheduler
from lengthwise.workload.length_log import Answer, read_answers
from tests.support.checked_engine import CheckedEngine


def served(settings: dict[str, object], asks: list[Ask], **options: Any) -> CheckedEngine:
    scheduler = build_scheduler(Scheduler, lengthwise={"settings": settings}, **options)
    engine = CheckedEngine(scheduler)
    for ask in asks:
        engine.add(ask)
    engine.drain()
    return engine


def test_every_request_is_logged_with_its_end(tmp_path: Path) -> None:
    settings: dict[str, object] = {
        "policy": "oracle",
        "length_log": {"folder": str(tmp_path / "log")},
    }
    scheduler = build_scheduler(Scheduler, max_num_seqs=2, lengthwise={"settings": settings})
    engine = CheckedEngine(scheduler)
    hints = {"lengthwise_true_tokens": 9}
    engine.add(Ask("whole", [5, 6, 7], answer=9, hints=hints))
    engine.add(Ask("cut", [5, 6], answer=90, max_tokens=4, hints=hints))
    engine.add(Ask("gone", [5], answer=90))
    engine.step()
    engine.abort(["gone"])
    engine.drain()
    scheduler.shutdown()
    answers, _ = read_answers(tmp_path / "log")
    logged = {answer.finished: answer for answer in answers}
    assert set(logged) == {"stop", "length", "abort"}
    assert logged["stop"].output_tokens == 9
    assert logged["stop"].values["predictor"] == "oracle"
    assert logged["stop"].values["score"] == 9.0
    assert logged["stop"].values["prompt_tokens"] == 3
    assert logged["stop"].values["queue_s"] >= 0.0
    assert logged["length"].output_tokens == 4
    assert logged["abort"].values["predictor"] is None
    assert logged["abort"].values["queue_s"] is None
    assert engine.scheduler.counters.logged == 3
    times = [answer.values["arrival_s"] for answer in sorted(answers, key=_by_arrival)]
    assert times == sorted(times)


def _by_arrival(answer: Answer) -> float:
    return float(answer.values["arrival_s"])


def test_the_log_follows_the_settings(tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"policy": "fcfs", "length_log": {"folder": "one"}}))
    scheduler = build_scheduler(Scheduler, lengthwise={"settings": str(path)})
    engine = CheckedEngine(scheduler)

    def switch(settings: dict[str, object]) -> None:
        before = scheduler.counters.settings_changes
        path.write_text(json.dumps(settings))
        while scheduler._settings.offered is scheduler._active:
            time.sleep(0.02)
        engine.step()
        assert scheduler.counters.settings_changes == before + 1

    engine.add(Ask("a", [5], answer=3))
    engine.drain()
    switch({"policy": "fcfs", "length_log": {"folder": "two"}})
    engine.add(Ask("b", [5], answer=4))
    engine.drain()
    switch({"policy": "fcfs"})
    engine.add(Ask("c", [5], answer=5))
    engine.drain()
    scheduler._settings._watcher.close()
    for folder, length in (("one", 3), ("two", 4)):
        (answer,), _ = read_answers(tmp_path / folder)
        assert answer.output_tokens == length
    assert scheduler.counters.logged == 2


class _Moody:
    """Says the truth, or its opposite."""

    name = "moody"
    lies = True

    def predict(self, prompt: Prompt) -> Prediction:
        value = float(str(prompt.hints["lengthwise_true_tokens"]))
        value = 1000.0 - value if self.lies else value
        return Prediction(value, value, value, value, value)


@pytest.fixture
def moody(monkeypatch: pytest.MonkeyPatch) -> _Moody:
    predictor = _Moody()
    monkeypatch.setattr("lengthwise.vllm.live_settings.load_predictor", lambda *a, **k: predictor)
    return predictor


def _asks(count: int, name: str, seed: int = 0) -> list[Ask]:
    rng = random.Random(seed)
    lengths = [rng.randint(2, 14) for _ in range(count)]
    return [
        Ask(f"{name}{i}", [7], length, hints={"lengthwise_true_tokens": length})
        for i, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("floor", [0.1, None])
def test_below_the_floor_the_order_is_that_of_the_queue(moody: _Moody, floor: float | None) -> None:
    settings: dict[str, object] = {
        "policy": "ltr",
        "predictor": "declared",
        "tau_floor": floor,
        "max_overtakes": None,
    }
    scheduler = build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": settings})
    engine = CheckedEngine(scheduler)

    def order_of(name: str) -> list[int]:
        asks = _asks(20, name)
        for ask in asks:
            engine.add(ask)
        engine.drain()
        return [int(i.removeprefix(name)) for i in engine.finished if i.startswith(name)]

    longest_first = order_of("early")
    assert longest_first != list(range(20))
    for ask in _asks(320, "bad"):
        engine.add(ask)
        engine.drain()
    tau = scheduler._report.gauges()["rolling_tau"]
    assert tau == pytest.approx(-1.0, abs=0.05)
    assert scheduler.counters.floor_falls == (0 if floor is None else 1)
    assert order_of("late") == (longest_first if floor is None else list(range(20)))
    assert scheduler._report.status()["below_tau_floor"] is (floor is not None)

    # Predictions were made all the while, so that better ones are noticed.
    assert scheduler.counters.predictions == 360
    moody.lies = False
    for ask in _asks(400, "good"):
        engine.add(ask)
        engine.drain()
    assert scheduler.counters.floor_rises == (0 if floor is None else 1)
    lengths = [ask.answer for ask in _asks(20, "last")]
    assert [lengths[place] for place in order_of("last")] == sorted(lengths)
    assert scheduler._report.status()["rolling_tau"] == pytest.approx(1.0)


def test_answers_that_were_cut_say_nothing_of_predictions(moody: _Moody) -> None:
    settings: dict[str, object] = {"policy": "ltr", "predictor": "declared"}
    asks = [Ask(a.request_id, a.prompt, 500, a.answer, hints=a.hints) for a in _asks(400, "cut")]
    engine = served(settings, asks)
    assert engine.scheduler.counters.floor_falls == 0
    assert engine.scheduler._report.status()["rolling_tau"] is None


def test_without_a_predictor_yet_the_order_is_that_of_the_queue() -> None:
    settings: dict[str, object] = {"policy": "ltr", "predictor": "none"}
    asks = _asks(20, "r")
    engine = served(settings, asks, max_num_seqs=1)
    assert list(engine.finished) == [ask.request_id for ask in asks]
    counters = engine.scheduler.counters
    assert (counters.predictions, counters.fallbacks) == (0, 0)
