"""Nothing that a client sends, a policy does or an observer raises may end the engine."""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.counters import Counters
from lengthwise.errors import InputError
from lengthwise.settings import Settings, parse_settings
from lengthwise.vllm import Scheduler
from lengthwise.vllm.observers import Containment
from tests.support.checked_engine import CheckedEngine

HUGE = 2**63
EXTREMES: tuple[Any, ...] = (
    -1, 0, 1, 2**31 - 1, 2**31, 3_000_000_000, HUGE, 10**30, -(10**30), 1e300, 1e-300,
    float("inf"), float("-inf"), float("nan"), True, "x" * 1_000_000, "\0", [[]], {"a": 1},
)  # fmt: skip


def engine_with(lag: int = 0, slots: int = 2, **settings: object) -> CheckedEngine:
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=slots, num_blocks=40, asynchronous=lag == 1,
        lengthwise={"settings": settings},
    )  # fmt: skip
    return CheckedEngine(scheduler, lag)


def serve(engine: CheckedEngine, count: int = 8) -> None:
    """A few requests of several lengths, all of which must end."""
    served = len(engine.finished)
    for number in range(count):
        answer = 3 + 7 * (number % 4)
        hints = {"lengthwise_expected_tokens": answer}
        engine.add(Ask(f"served-{served + number}", [7] * (8 + number), answer, hints=hints))
        engine.step()
    engine.drain()


# Settings ---------------------------------------------------------------------------------------


def refusal(settings: Mapping[str, Any]) -> InputError | None:
    """Why settings are refused, None where they are not; anything else is a defect."""
    try:
        parse_settings(settings)
    except InputError as error:
        return error
    return None


def is_one_line(error: InputError) -> bool:
    return "\n" not in str(error) and len(str(error)) < 2000


def _numeric(annotation: Any) -> bool:
    options = typing.get_args(annotation) if not isinstance(annotation, type) else (annotation,)
    flat = [option for each in options for option in (typing.get_args(each) or (each,))]
    return any(option in (int, float) for option in flat)


NUMBERS = [name for name, field in Settings.model_fields.items() if _numeric(field.annotation)]


def test_every_number_among_the_settings_is_tried() -> None:
    assert {"starvation_quantum", "max_overtakes", "memory_growth", "max_wait_s"} <= set(NUMBERS)


@pytest.mark.parametrize("name", [name for name in NUMBERS if name != "metrics_port"])
def test_a_number_is_refused_in_one_line_or_served_with(name: str) -> None:
    usual: dict[str, Any] = {
        "policy": "srpt",
        "predictor": "declared",
        "preemption": "greedy",
        "starvation_threshold": 2,
    }
    accepted = 0
    for value in EXTREMES:
        if name == "parameters":
            settings = {**usual, "policy": "trail", "parameters": {"c": value}}
        else:
            settings = {**usual, name: value}
        refused = refusal(settings)
        if refused is not None:
            assert is_one_line(refused)
            continue
        accepted += 1
        serve(engine_with(**settings), count=6)
    assert accepted > 0


@pytest.mark.parametrize("name", list(Settings.model_fields))
@pytest.mark.parametrize("value", [[[]], {"a": [1]}, "\0", "x" * 100_000, "a\nb"], ids=range(5))
def test_a_value_of_any_kind_is_refused_in_one_line_or_taken(
    name: str, value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some are names of folders
    settings = {"policy": "srpt", "predictor": "declared", name: value}
    if name == "metrics_host":
        settings["metrics_port"] = 18_700
    try:
        engine_with(**settings).scheduler.shutdown()
    except InputError as error:
        refused = error
    else:
        refused = None
    assert refused is None or is_one_line(refused)


# Clients ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("predictor", ["declared", "oracle", "noisy-oracle:0.5"])
@pytest.mark.parametrize("policy", ["srpt", "trail", "gittins", "deadline"])
def test_a_client_may_declare_anything(predictor: str, policy: str, tmp_path: Path) -> None:
    engine = engine_with(
        policy=policy,
        predictor=predictor,
        preemption="greedy",
        memory_growth=1.0,
        service_time=True,
        max_tenant_lead=100,
        record=str(tmp_path),
    )
    said = (*EXTREMES, "1e300", "-inf", "nan", "9" * 5000, None, {})
    # vLLM refuses integers of more than 64 bits by itself.
    declared = [value for value in said if not isinstance(value, int) or abs(value) <= HUGE]
    for number, value in enumerate(declared):
        hints = {
            "lengthwise_expected_tokens": value,
            "lengthwise_true_tokens": value,
            "lengthwise_id": value,
            "lengthwise_tenant": value,
            "lengthwise_ttft_deadline_ms": value,
        }
        engine.add(Ask(f"r{number}", [7] * 8, 5, hints=hints))
        engine.step()
    engine.drain()
    counters = engine.scheduler.counters
    assert counters.switched_off == 0
    assert counters.finished == len(declared)
    assert counters.predictions + counters.fallbacks == len(declared)
    engine.scheduler.shutdown()
    lines = (tmp_path / "requests.jsonl").read_text().splitlines()[1:]
    assert len(lines) == len(declared)
    assert max(map(len, lines)) < 2000
    assert all(len(json.loads(line)["id"]) <= 128 for line in lines)


@pytest.mark.parametrize("vllm_policy", ["fcfs", "priority"])
@pytest.mark.parametrize("policy", ["fcfs", "srpt"])
def test_a_priority_of_any_size_is_served_in_its_class(policy: str, vllm_policy: Any) -> None:
    settings = {"policy": policy, "predictor": "declared", "client_priority": True}
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=1, policy=vllm_policy, lengthwise={"settings": settings}
    )
    engine = CheckedEngine(scheduler)
    engine.add(Ask("first", [7] * 8, 5))
    engine.step()
    for priority in (10**40, HUGE, 3, 0, -3, -HUGE - 1, -(10**40)):
        engine.add(Ask(f"p{priority}", [7] * 8, 5, priority=priority))
    engine.drain()
    order = list(engine.finished)[1:]
    assert order[2:5] == ["p-3", "p0", "p3"]
    assert set(order[:2]) == {f"p{-HUGE - 1}", f"p{-(10**40)}"}
    assert set(order[5:]) == {f"p{HUGE}", f"p{10**40}"}


# Policies and observers ------------------------------------------------------------------------

FRAGILE = '''
from lengthwise.policy import register

@register("{name}", predicts=False, preemption="greedy")
def rank(request, now, parameters):
    """Fails for prompts of thirty tokens{when}."""
    if {condition}:
        return 1.0 / (request.prompt_tokens - 30.0)
    return -float(request.arrival_index)
'''


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize(
    ("when", "condition"),
    [
        ("always", "True"),
        ("waiting", "request.age == 0"),  # seen when the queue is asked, in the midst of a step
        ("running", "request.age > 1"),  # seen when swaps are chosen
    ],
)
def test_a_policy_that_raises_leaves_fcfs(
    tmp_path: Path, when: str, condition: str, lag: int
) -> None:
    name = f"fragile-{when}-{lag}"
    path = tmp_path / "fragile.py"
    path.write_text(FRAGILE.format(name=name, when=f" that are {when}", condition=condition))
    engine = engine_with(lag, policy=f"{path}#{name}")
    scheduler = engine.scheduler
    serve(engine, count=4)  # never one of thirty tokens
    assert scheduler.counters.switched_off == 0
    for number in range(6):
        prompt = [7] * (30 if number < 4 else 20 + number)
        engine.add(Ask(f"r{number}", prompt, 40 + number))
        engine.step()
    engine.drain()
    assert scheduler.counters.switched_off == 1
    assert "ZeroDivisionError" in scheduler._report.status()["switched_off"]["policy"]
    for number in range(6):
        engine.add(Ask(f"later-{number}", [7] * 30, 6))
    engine.drain()
    later = [name for name in engine.finished if name.startswith("later")]
    assert later == [f"later-{number}" for number in range(6)]
    assert scheduler.counters.switched_off == 1
    scheduler._settings.offer(parse_settings({"policy": "srpt", "predictor": "declared"}))
    serve(engine)
    assert scheduler._report.status()["switched_off"] == {}


@pytest.mark.parametrize("lag", [0, 1])
def test_facts_that_cannot_be_gathered_leave_fcfs(
    lag: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(lag, policy="srpt", predictor="declared", preemption="pays")

    def raises(*arguments: Any) -> None:
        raise RuntimeError("no price is known")

    monkeypatch.setattr(engine.scheduler._planner.facts, "gather", raises)
    serve(engine)
    assert engine.scheduler.counters.switched_off == 1
    why = engine.scheduler._report.status()["switched_off"]
    assert why == {"policy": "RuntimeError: no price is known"}
    for number in range(6):
        engine.add(Ask(f"later-{number}", [7] * 30, 6))
    engine.drain()
    later = [name for name in engine.finished if name.startswith("later")]
    assert later == [f"later-{number}" for number in range(6)]


OBSERVERS: dict[str, Callable[[Any], tuple[object, str]]] = {
    "record of requests": lambda scheduler: (scheduler._active.recorder, "request"),
    "record of steps": lambda scheduler: (scheduler._active.recorder, "step"),
    "length log": lambda scheduler: (scheduler._active.length_log, "answer"),
    "rolling tau": lambda scheduler: (scheduler._observers.tau, "ended"),
    "predictor": lambda scheduler: (scheduler._predictions, "work"),
    "queue times": lambda scheduler: (scheduler._observers.queue_times, "observe"),
    "journal": lambda scheduler: (scheduler._active.journal, "put"),
    "shadow of requests": lambda scheduler: (scheduler._active.shadow, "request"),
    "shadow of steps": lambda scheduler: (scheduler._active.shadow, "step"),
}


@pytest.mark.parametrize("observer", OBSERVERS)
@pytest.mark.parametrize("lag", [0, 1])
def test_an_observer_that_raises_is_switched_off(
    observer: str, lag: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(
        lag,
        policy="srpt",
        predictor="declared",
        preemption="pays",
        record=str(tmp_path / "record"),
        length_log={"folder": str(tmp_path / "log")},
        journal=str(tmp_path / "journal"),
        shadow=observer.startswith("shadow"),
    )
    owner, method = OBSERVERS[observer](engine.scheduler)
    calls = 0

    def raises(*arguments: Any, **values: Any) -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("nobody thought\nof this")

    monkeypatch.setattr(owner, method, raises)
    serve(engine)
    assert calls == 1
    assert engine.scheduler.counters.switched_off == 1
    (why,) = engine.scheduler._report.status()["switched_off"].values()
    assert why == "RuntimeError: nobody thought of this"
    engine.scheduler.shutdown()


@pytest.mark.parametrize("part", ["recorder", "length_log"])
def test_a_line_that_cannot_be_encoded_loses_itself_alone(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_with(
        policy="srpt",
        predictor="declared",
        record=str(tmp_path / "record"),
        length_log={"folder": str(tmp_path / "log")},
    )
    scheduler = engine.scheduler
    real = getattr(scheduler._active, part)._encode
    failed = []

    def once(line: Any) -> Any:
        if not failed:
            failed.append(line)
            raise ValueError("this one")
        return real(line)

    monkeypatch.setattr(getattr(scheduler._active, part), "_encode", once)
    serve(engine)
    scheduler.shutdown()
    counters = scheduler.counters
    assert counters.switched_off == 0
    assert (counters.record_lost, counters.log_lost) == ((1, 0) if part == "recorder" else (0, 1))


def test_a_full_disk_under_the_record_is_said_once_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lengthwise.telemetry import journal

    said: list[str] = []
    monkeypatch.setattr(journal.logger, "error", lambda line, *rest: said.append(line))
    monkeypatch.setattr(journal, "_RETRY_S", 0.0)
    monkeypatch.setattr(journal, "_FLUSH_S", 0.01)
    folder = tmp_path / "record"
    folder.mkdir()
    for name in ("steps.jsonl", "requests.jsonl"):
        (folder / name).symlink_to("/dev/full")
    engine = engine_with(policy="fcfs", record=str(folder))
    serve(engine)
    scheduler = engine.scheduler
    # Taking the record out again is possible.
    scheduler._settings.offer(Settings())
    serve(engine, count=3)
    scheduler._settings.settle()
    assert scheduler._active.recorder is None
    assert len(said) == 1
    assert scheduler.counters.record_lost >= 8
    assert scheduler.counters.switched_off == 0


def test_reasons_are_logged_with_their_traceback(caplog: pytest.LogCaptureFixture) -> None:
    contained = Containment(Counters())
    contained.call("part", lambda: 1 / 0)
    contained.call("part", lambda: 1 / 0)
    (logged,) = caplog.records
    assert isinstance(logged.exc_info, tuple)
    assert isinstance(logged.exc_info[2], types.TracebackType)
