"""Settings that change while serving, and predictors that fail."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.errors import InputError
from lengthwise.files import replace_file
from lengthwise.predict.prediction import Prediction, Prompt
from lengthwise.settings import Settings
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import CheckedEngine
from tests.support.status_file import status_of

PATIENCE_S = 20.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


@pytest.fixture
def engine(path: Path) -> Iterator[CheckedEngine]:
    Settings(policy="fcfs").write(path)
    scheduler = build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": str(path)})
    yield CheckedEngine(scheduler)
    scheduler._settings._watcher.close()


def _status_once(path: Path, **expected: object) -> dict[str, Any]:
    """The status file, once it says what is expected."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        status = status_of(path)
        if all(status[key] == value for key, value in expected.items()):
            return status
        assert time.monotonic() < deadline, f"{expected} never came: {status}"
        time.sleep(0.02)


def _ask(name: str, answer: int) -> Ask:
    return Ask(name, [7] * 8, answer, hints={"lengthwise_true_tokens": answer})


def test_the_status_file_says_at_once_what_is_active(engine: CheckedEngine, path: Path) -> None:
    status = status_of(path)
    assert status["policy"] == "fcfs"
    assert status["state"] == "active"
    assert status["error"] is None
    assert status["settings_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_change_takes_over_waiting_requests(engine: CheckedEngine, path: Path) -> None:
    engine.add(_ask("running", 30))
    engine.step()
    for name, answer in (("long", 90), ("short", 3), ("middle", 20)):
        engine.add(_ask(name, answer))
    digest = Settings(policy="oracle-sjf", max_overtakes=None).write(path)
    _status_once(path, settings_sha256=digest, state="active", policy="oracle-sjf")
    engine.drain()
    assert list(engine.finished) == ["running", "short", "middle", "long"]
    assert engine.scheduler.counters.settings_changes >= 1


def test_back_to_fcfs_is_the_order_of_the_queue(engine: CheckedEngine, path: Path) -> None:
    _status_once(path, settings_sha256=Settings(policy="oracle-sjf").write(path))
    engine.add(_ask("running", 30))
    engine.step()
    for name, answer in (("long", 90), ("short", 3), ("middle", 20)):
        engine.add(_ask(name, answer))
    _status_once(path, settings_sha256=Settings(policy="fcfs").write(path), state="active")
    engine.drain()
    assert list(engine.finished) == ["running", "long", "short", "middle"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not JSON"),
        ("[]", "object"),
        ('{"policy": "srtp"}', "srpt"),
        ('{"polcy": "srpt"}', "policy"),
        ('{"blend": 2}', "blend"),
        ('{"policy": "srpt", "predictor": "no/such/folder"}', "no/such/folder"),
        ('{"policy": "trail", "predictor": "oracle", "parameters": {"d": 1}}', "'d'"),
    ],
)
def test_a_broken_file_keeps_the_last_good_settings(
    engine: CheckedEngine, path: Path, text: str, says: str
) -> None:
    good = Settings(policy="oracle-sjf").write(path)
    _status_once(path, settings_sha256=good)
    replace_file(path, text.encode())  # as a whole: no watcher sees it empty
    status = _status_once(path, state="refused")
    assert says in status["error"]
    assert "\n" not in status["error"]
    assert status["policy"] == "oracle-sjf"
    assert status["settings_sha256"] == good

    engine.add(_ask("running", 9))
    engine.step()
    engine.add(_ask("long", 90))
    engine.add(_ask("short", 3))
    engine.drain()
    assert list(engine.finished) == ["running", "short", "long"]

    mended = Settings(policy="fcfs").write(path)
    _status_once(path, settings_sha256=mended, state="active", error=None)


def test_a_deleted_file_keeps_the_last_good_settings(engine: CheckedEngine, path: Path) -> None:
    path.unlink()
    status = _status_once(path, state="refused", policy="fcfs")
    assert status["counters"]["settings_refused"] == 1
    _status_once(path, settings_sha256=Settings(policy="oracle").write(path), state="active")


def test_a_file_caught_in_the_middle_of_writing_is_not_refused(
    engine: CheckedEngine, path: Path
) -> None:
    whole = tuple(Settings(policy="oracle").model_dump_json())
    with path.open("w") as file:  # as an editor does that does not replace the file at once
        file.write("".join(whole[:10]))
        file.flush()
        file.write("".join(whole[10:]))
    status = _status_once(path, policy="oracle", state="active")
    assert status["counters"]["settings_refused"] == 0


def test_counters_reach_the_status_file(engine: CheckedEngine, path: Path) -> None:
    _status_once(path, settings_sha256=Settings(policy="oracle").write(path))
    for number in range(5):
        engine.add(_ask(f"r{number}", 4))
    engine.drain()
    status = _status_once(path, counters=engine.scheduler.counters.snapshot())
    assert status["counters"]["finished"] == 5
    assert status["counters"]["predictions"] == 5


@pytest.mark.parametrize(
    "additional", [None, {}, {"settings": {"policy": "nonsense"}}, {"settings": "/no/such/file"}]
)
def test_bad_settings_at_the_start_are_one_line(additional: dict[str, object] | None) -> None:
    with pytest.raises(InputError) as caught:
        build_scheduler(Scheduler, lengthwise=additional)
    assert "\n" not in str(caught.value)


class _Predictor:
    """Gives the true length, or whatever else it is told to."""

    name = "faulty"

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def predict(self, prompt: Prompt) -> Prediction:
        value = float(str(prompt.hints["lengthwise_true_tokens"]))
        if self.fault == "raises":
            raise OSError("the artifact is gone")
        if self.fault != "none":
            value = float(self.fault)
        return Prediction(value, value, value, value, value)


@pytest.mark.parametrize("fault", ["none", "raises", "nan", "inf", "-inf", "-3"])
@pytest.mark.parametrize("policy", ["ltr", "srpt", "trail", "sjf"])
def test_without_any_usable_prediction_the_order_is_that_of_the_queue(
    policy: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = _Predictor(fault)
    monkeypatch.setattr("lengthwise.vllm.live_settings.load_predictor", lambda *a, **k: predictor)
    settings = {
        "policy": policy,
        "predictor": "declared",
        "preemption": "greedy",
        "max_overtakes": None,
    }
    scheduler = build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": settings})
    engine = CheckedEngine(scheduler)
    names = [f"r{number}" for number in range(6)]
    for number, name in enumerate(names):
        engine.add(_ask(name, 30 - 4 * number))
    engine.drain()
    order = list(engine.finished)
    assert order == (names[::-1] if fault == "none" else names)
    assert scheduler.counters.predictions == (6 if fault == "none" else 0)
    assert scheduler.counters.fallbacks == (0 if fault == "none" else 6)


def test_one_without_a_prediction_ranks_as_the_median(monkeypatch: pytest.MonkeyPatch) -> None:
    class Partial(_Predictor):
        def predict(self, prompt: Prompt) -> Prediction:
            if prompt.hints.get("unknown"):
                return Prediction(math.nan, math.nan, math.nan, math.nan, math.nan)
            return super().predict(prompt)

    monkeypatch.setattr(
        "lengthwise.vllm.live_settings.load_predictor", lambda *a, **k: Partial("none")
    )
    settings = {"policy": "sjf", "predictor": "declared", "max_overtakes": None}
    scheduler = build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": settings})
    engine = CheckedEngine(scheduler)
    hints = {"lengthwise_true_tokens": 100, "unknown": True}
    engine.add(Ask("unknown", [7] * 8, 100, hints=hints))
    for name, answer in (("longer", 60), ("long", 50), ("short", 10), ("shorter", 9)):
        engine.add(_ask(name, answer))
    engine.drain()
    assert list(engine.finished) == ["shorter", "short", "unknown", "long", "longer"]
    assert scheduler.counters.fallbacks == 1


def test_a_burst_of_predictions_does_not_hold_a_step_up(monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = _Predictor("none")
    monkeypatch.setattr("lengthwise.vllm.live_settings.load_predictor", lambda *a, **k: predictor)
    settings = {"policy": "sjf", "predictor": "declared"}
    scheduler = build_scheduler(Scheduler, lengthwise={"settings": settings})
    engine = CheckedEngine(scheduler)
    for number in range(1000):
        engine.add(_ask(f"r{number}", 5))
    made = [0]
    for _ in range(10):
        engine.step()
        made.append(scheduler.counters.predictions)
    assert max(after - before for before, after in pairwise(made)) < 300
    assert made[-1] == 1000
