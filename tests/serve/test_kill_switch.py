"""The kill switch: vLLM's own order from one step to the next, and the way back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.emulate.driver import OURS, Asked, Served, VirtualEngine, open_virtual_engine
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.serve.settings_file import say_if_off
from lengthwise.serve.whereabouts import note_settings, settings_file, statuses, switch
from lengthwise.settings import Settings, off_path, status_path
from lengthwise.simulate.engine import EngineSettings
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import CheckedEngine
from tests.support.virtual_workloads import COST
from tests.support.waiting import wait_until

QUEUED = 10_000
PATIENCE_S = 20.0
GREEDY: dict[str, Any] = {
    "policy": "oracle",
    "preemption": "greedy",
    "max_overtakes": None,
    "client_priority": True,
    "tau_floor": None,
}

SHORTEST = Settings(policy="oracle-sjf", max_overtakes=None)


def steps(virtual: VirtualEngine, count: int) -> list[tuple[list[str], list[str]]]:
    """For each step: who was taken from the queue, and who was first in it, in vLLM's own order."""
    scheduler, seen = virtual.scheduler, []
    for _ in range(count):
        queued = [request.request_id for request in scheduler.waiting]
        before = {request.request_id for request in scheduler.running}
        virtual.step()
        taken = [
            request.request_id
            for request in scheduler.waiting.taken
            if request.request_id not in before
        ]
        seen.append((taken, queued[: len(taken)]))
    return seen


@pytest.mark.parametrize("lag", [0, 1])
def test_10_000_queued_are_served_as_queued_from_the_next_step_on(lag: int) -> None:
    """Long, since a queue of thousands is what the switch is thrown for, and what could hold it."""
    engine = EngineSettings(slots=8, token_budget=128, block_size=16, lag=lag)
    asked = [
        Asked(
            prompt_ids=range(2, 12),
            output_tokens=length,
            priority=place % 3,
            hints={TRUE_TOKENS: length},
        )
        for place in range(QUEUED)
        for length in (2 + (place * 7919) % 50,)
    ]
    with open_virtual_engine(COST, engine, longest=64, scheduler=OURS, settings=GREEDY) as virtual:
        virtual.begin()
        for each in asked:
            virtual.send(each, Served(), 0.0)
        before = steps(virtual, 60)
        assert sum(taken != first for taken, first in before) > 10  # the policy decides
        preempted = virtual.scheduler.counters.preemptions

        virtual.scheduler.switch_off(True)
        off = steps(virtual, 120)
        assert all(taken == first for taken, first in off)
        assert sum(bool(taken) for taken, _ in off) > 10
        assert virtual.scheduler.counters.preemptions == preempted

        virtual.scheduler.switch_off(False)
        back = steps(virtual, 20)
        assert sum(taken != first for taken, first in back) > 2
        virtual.abort([served for _, served in list(virtual._live.values())])
        while virtual.busy:
            virtual.step()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


@pytest.fixture
def engine(path: Path) -> Iterator[CheckedEngine]:
    SHORTEST.write(path)
    scheduler = build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": str(path)})
    yield CheckedEngine(scheduler)
    scheduler.shutdown()


def order(engine: CheckedEngine, names: str) -> list[str]:
    """How a long, a short and a middle answer end behind one that runs."""
    engine.add(_ask(f"{names}-running", 30))
    engine.step()
    for name, answer in (("long", 90), ("short", 3), ("middle", 20)):
        engine.add(_ask(f"{names}-{name}", answer))
    engine.drain()
    return [name.split("-")[1] for name in engine.finished if name.startswith(f"{names}-")]


def _ask(name: str, answer: int) -> Ask:
    return Ask(name, [7] * 8, answer, hints={TRUE_TOKENS: answer})


def test_a_file_beside_the_settings_switches_off_and_back(
    engine: CheckedEngine, path: Path
) -> None:
    assert order(engine, "on") == ["running", "short", "middle", "long"]
    assert switch(path, True, PATIENCE_S) == 1
    (status,) = statuses(path)
    assert (status["off"], status["policy"], status["state"]) == (True, "fcfs", "active")
    assert order(engine, "off") == ["running", "long", "short", "middle"]
    assert switch(path, False, PATIENCE_S) == 1
    assert statuses(path)[0]["policy"] == "oracle-sjf"
    assert order(engine, "back") == ["running", "short", "middle", "long"]


def test_settings_that_change_while_it_is_off_count_when_it_is_on(
    engine: CheckedEngine, path: Path
) -> None:
    switch(path, True, PATIENCE_S)
    digest = SHORTEST.model_copy(update={"max_swaps": 3}).write(path)
    wait_until(lambda: statuses(path)[0]["settings_sha256"] == digest)
    assert statuses(path)[0]["policy"] == "fcfs"
    path.write_text("{")  # and one that is broken does not keep it from going on
    switch(path, False, PATIENCE_S)
    assert statuses(path)[0]["policy"] == "oracle-sjf"
    assert order(engine, "on") == ["running", "short", "middle", "long"]


def test_off_at_the_start(path: Path) -> None:
    Settings(policy="oracle-sjf").write(path)
    assert switch(path, True, PATIENCE_S) == 0  # nobody watches yet
    scheduler = build_scheduler(Scheduler, max_num_seqs=1, lengthwise={"settings": str(path)})
    engine = CheckedEngine(scheduler)
    assert order(engine, "off") == ["running", "long", "short", "middle"]
    scheduler.shutdown()


def test_what_cannot_be_switched_is_said(path: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no settings file"):
        switch(path, True, 0.0)
    Settings().write(path)
    off_path(path).mkdir()  # whoever is root may write anywhere else
    with pytest.raises(InputError, match="cannot remove"):
        switch(path, False, 0.0)
    off_path(path).rmdir()
    # An engine that lives and does not follow; one that is dead, and a file that is torn.
    status_path(path).write_text(json.dumps({"off": False, "pid": os.getpid()}))
    status_path(path, 1).write_text(json.dumps({"off": False, "pid": 2**22 + 1}))
    status_path(path, 2).write_text('{"off": fal')
    with pytest.raises(LengthwiseError, match="1 of 1 engines"):
        switch(path, True, 0.2)


def test_a_url_names_a_server_of_this_machine(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    note_settings(8123, path)
    assert settings_file("http://localhost:8123") == path
    assert settings_file("http://localhost:8123/v1") == path
    assert settings_file(str(path)) == path
    assert settings_file("http://127.0.0.1:8123") == path
    for url in ("http://localhost:8124", "http://localhost:port", "http://:8123"):
        with pytest.raises(InputError):
            settings_file(url)
    with pytest.raises(InputError, match="is another machine's"):
        settings_file("http://192.0.2.7:8123")  # an address of documentation, nobody's
    with pytest.raises(InputError, match="not known here"):
        settings_file("http://gpu-17.invalid:8123")


def test_a_name_of_a_file_may_look_like_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "llama[70b].json"
    status_path(path, 0).write_text(json.dumps({"off": False, "pid": os.getpid()}))
    assert [status["off"] for status in statuses(path)] == [False]


def test_an_earlier_switch_is_said_at_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = tmp_path / "settings.json"
    say_if_off(settings, 8123)
    assert capsys.readouterr().err == ""
    off_path(settings).touch()
    say_if_off(settings, 8123)
    (line,) = capsys.readouterr().err.splitlines()
    assert "lengthwise on http://localhost:8123" in line
