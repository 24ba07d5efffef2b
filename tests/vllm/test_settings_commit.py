"""Settings are prepared, committed as a whole and retired: refused means that nothing changed."""

from __future__ import annotations

import hashlib
import json
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, build_scheduler
from lengthwise.errors import InputError
from lengthwise.serve.listen import free_port
from lengthwise.settings import Settings, parse_settings
from lengthwise.vllm import Scheduler
from lengthwise.workload.length_log import read_answers
from tests.support.checked_engine import CheckedEngine
from tests.support.status_file import status_of
from tests.support.strange_files import STRANGE
from tests.support.waiting import wait_until


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


@pytest.fixture
def start(path: Path) -> Iterator[Callable[..., CheckedEngine]]:
    schedulers = []

    def started(**settings: Any) -> CheckedEngine:
        path.write_text(json.dumps({"policy": "fcfs", **settings}))
        scheduler = build_scheduler(Scheduler, max_num_seqs=2, lengthwise={"settings": str(path)})
        schedulers.append(scheduler)
        return CheckedEngine(scheduler)

    yield started
    for scheduler in schedulers:
        scheduler.shutdown()


def switch(path: Path, **settings: Any) -> dict[str, Any]:
    """The status once the watcher has decided on new settings."""
    before = status_of(path)
    refused = before["counters"]["settings_refused"]
    path.write_text(json.dumps({"policy": "fcfs", **settings}))

    def decided() -> bool:
        status = status_of(path)
        if status["counters"]["settings_refused"] > refused:
            return True
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        return bool(status["settings_sha256"] == digest)

    wait_until(decided)
    return status_of(path)


def answers_at(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return b"lengthwise_steps_total" in answer.read()
    except OSError:
        return False


# Prepare ----------------------------------------------------------------------------------------

BROKEN: dict[str, dict[str, Any]] = {
    "predictor": {"predictor": "no/such/folder"},
    "policy": {"policy": "srtp"},
    "own policy": {"policy": "no/such/file.py#mine"},
    "parameter": {"policy": "trail", "predictor": "declared", "parameters": {"d": 1}},
    "stand-in": {"policy": "srpt", "predictor": "declared", "stand_in": 7},
    "record": {"record": "/dev/null/record"},
    "length log": {"length_log": {"folder": "/dev/null/log", "text": True}},
    "metrics host": {"metrics_host": "no.such.host.invalid"},
    "metrics host with an empty part": {"metrics_host": "a..b"},
    "number": {"starvation_quantum": 3_000_000_000},
}


@pytest.mark.parametrize("broken", BROKEN)
def test_refused_settings_change_nothing(
    broken: str, start: Callable[..., CheckedEngine], path: Path, tmp_path: Path
) -> None:
    engine = start(length_log={"folder": "good"}, record=str(tmp_path / "good-record"))
    scheduler = engine.scheduler
    active, parts = scheduler._active, list(scheduler._settings._opener._open)
    assert len(parts) == 2
    threads = set(threading.enumerate())
    port = free_port()
    wanted: dict[str, Any] = {
        "policy": "srpt",
        "predictor": "declared",
        "metrics_port": port,
        "record": str(tmp_path / "other-record"),
        "length_log": {"folder": str(tmp_path / "other"), "text": True},
        **BROKEN[broken],
    }
    status = switch(path, **wanted)
    assert status["state"] == "refused"
    assert "\n" not in status["error"]
    assert (status["policy"], status["metrics_port"]) == ("fcfs", None)
    assert scheduler._settings.offered is scheduler._active is active
    assert scheduler._settings._opener._open == parts
    assert not answers_at(port)
    assert set(threading.enumerate()) <= threads
    engine.add(Ask("a", list(range(20, 40)), 5))
    engine.drain()
    scheduler.shutdown()
    (answer,), _ = read_answers(tmp_path / "good")
    assert "text" not in answer.values
    for folder in (tmp_path / "other", tmp_path / "other-record"):
        assert not folder.exists() or not list(folder.iterdir())


def test_there_and_back_again(start: Callable[..., CheckedEngine], path: Path) -> None:
    first, second = free_port(), free_port()
    start(metrics_port=first)
    for port, other in ((second, first), (first, second), (second, first)):
        status = switch(path, metrics_port=port)
        assert (status["state"], status["metrics_port"]) == ("active", port)
        assert answers_at(port)
        wait_until(lambda other=other: not answers_at(other))  # type: ignore[misc]
    status = switch(path, policy="srpt", predictor="declared", metrics_port=second)
    assert (status["policy"], status["metrics_port"]) == ("srpt", second)
    assert switch(path)["metrics_port"] is None
    wait_until(lambda: not answers_at(second))


def test_what_stays_the_same_stays_open(
    start: Callable[..., CheckedEngine], path: Path, tmp_path: Path
) -> None:
    same: dict[str, Any] = {
        "length_log": {"folder": "log"},
        "record": str(tmp_path / "record"),
        "metrics_port": free_port(),
    }
    scheduler = start(**same).scheduler
    before = scheduler._active
    switch(path, policy="srpt", predictor="declared", **same)
    after = scheduler._settings.offered
    assert after is not before
    assert after.length_log is before.length_log
    assert after.recorder is before.recorder
    assert after.metrics is before.metrics


def test_the_status_of_an_idle_engine_is_of_one_piece(
    start: Callable[..., CheckedEngine], path: Path
) -> None:
    scheduler = start(policy="sjf", predictor="declared").scheduler
    scheduler._observers.tau.tau = 0.75
    wait_until(lambda: status_of(path)["rolling_tau"] == 0.75)
    status = switch(path, policy="ltr", predictor="prompt-length")
    assert (status["policy"], status["predictor"]) == ("ltr", "prompt-length")
    assert status["rolling_tau"] is None, "the one of the predictor before"


# Commit and retire ------------------------------------------------------------------------------


def test_active_means_committed(
    start: Callable[..., CheckedEngine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(record=str(tmp_path / "one"))
    scheduler = engine.scheduler
    engine.add(Ask("a", [7] * 8, 30))
    engine.step()
    old, seen = scheduler._active, []
    plan = scheduler._planner.plan

    def changed_in_the_midst(*arguments: Any) -> Any:
        scheduler._settings.offer(
            parse_settings({"policy": "mlfq", "record": str(tmp_path / "two")})
        )
        seen.append((scheduler._settings.settle(), scheduler._active is old))
        return plan(*arguments)

    monkeypatch.setattr(scheduler._planner, "plan", changed_in_the_midst)
    engine.step()
    assert seen == [(False, True)]
    monkeypatch.setattr(scheduler._planner, "plan", plan)
    assert scheduler._settings.settle()  # the next step takes it up before it decides anything
    assert old.recorder._thread.is_alive()  # what is in flight still writes there
    engine.step()
    assert scheduler._active is scheduler._settings.offered
    scheduler._settings.settle()
    assert not old.recorder._thread.is_alive()
    engine.drain()
    scheduler.shutdown()
    assert "id" in (tmp_path / "two" / "requests.jsonl").read_text()
    assert "id" not in (tmp_path / "one" / "requests.jsonl").read_text()


def test_settings_that_are_offered_while_others_are_taken_up_are_not_lost(
    start: Callable[..., CheckedEngine],
) -> None:
    scheduler = start().scheduler
    scheduler._settings.offer(parse_settings({"policy": "sjf", "predictor": "declared"}))
    use = scheduler._predictions.use
    later = parse_settings({"policy": "mlfq"})
    scheduler._predictions.use = lambda source: (scheduler._settings.offer(later), use(source))[1]
    scheduler._take_up()
    scheduler._predictions.use = use
    assert scheduler._planner.discipline.policy.name == "sjf"
    scheduler._take_up()
    assert scheduler._planner.discipline.policy.name == "mlfq"


def test_shutting_down_writes_all_and_leaves_nothing_open(
    start: Callable[..., CheckedEngine], path: Path, tmp_path: Path
) -> None:
    threads = set(threading.enumerate())
    port = free_port()
    engine = start(record=str(tmp_path / "r"), length_log={"folder": "l"}, metrics_port=port)
    for number in range(50):
        engine.add(Ask(f"r{number}", [7] * 8, 5))
    engine.drain()
    engine.scheduler.shutdown()
    assert len((tmp_path / "r" / "requests.jsonl").read_text().splitlines()) == 51
    assert len(read_answers(tmp_path / "l")[0]) == 50
    counters = status_of(path)["counters"]
    assert (counters["finished"], counters["logged"]) == (50, 50)
    assert set(threading.enumerate()) <= threads
    assert not answers_at(port)


# The file ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("strange", ["endless", "pipe", "folder"])
def test_a_good_file_after_a_strange_one_is_taken_up(
    strange: str, start: Callable[..., CheckedEngine], path: Path
) -> None:
    start()
    path.unlink()
    STRANGE[strange](path)
    wait_until(lambda: status_of(path)["state"] == "refused")
    (path.rmdir if path.is_dir() else path.unlink)()
    status = switch(path, policy="priority")
    assert (status["state"], status["policy"]) == ("active", "priority")


def test_a_policy_that_ends_the_process_is_refused(
    start: Callable[..., CheckedEngine], path: Path, tmp_path: Path
) -> None:
    start()
    (tmp_path / "exits.py").write_text("raise SystemExit(3)")
    status = switch(path, policy=f"{tmp_path}/exits.py#mine")
    assert status["state"] == "refused"
    assert switch(path, policy="priority")["state"] == "active"


def test_the_settings_path_may_come_from_the_environment(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {"settings": "$LENGTHWISE_SETTINGS"}
    monkeypatch.delenv("LENGTHWISE_SETTINGS", raising=False)
    with pytest.raises(InputError, match="LENGTHWISE_SETTINGS"):
        build_scheduler(Scheduler, lengthwise=given)
    keys = set()
    for folder in ("one", "two"):
        there = path.parent / folder / "settings.json"
        Settings(policy="priority").write(there)
        monkeypatch.setenv("LENGTHWISE_SETTINGS", str(there))
        scheduler = build_scheduler(Scheduler, lengthwise=given)
        assert status_of(there)["policy"] == "priority"
        keys.add(scheduler.vllm_config.compute_hash())
        scheduler.shutdown()
    assert len(keys) == 1


# Several engines --------------------------------------------------------------------------------


def test_each_engine_of_a_server_has_files_and_a_port_of_its_own(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    path.write_text(
        json.dumps(
            {
                "record": str(tmp_path / "record"),
                "length_log": {"folder": "log"},
                "metrics_port": port,
                "metrics_host": "127.0.0.1",
            }
        )
    )
    schedulers = []
    for index in range(3):
        monkeypatch.setattr(
            "lengthwise.vllm.compat.schedulers.engine_index", lambda config, index=index: index
        )
        schedulers.append(build_scheduler(Scheduler, lengthwise={"settings": str(path)}))
        engine = CheckedEngine(schedulers[-1])
        engine.add(Ask(f"of-{index}", [7] * 8, 5))
        engine.drain()
    ports = [status_of(path, i)["metrics_port"] for i in range(3)]
    assert len(set(ports)) == 3
    for index, own in enumerate(ports):
        with urllib.request.urlopen(f"http://127.0.0.1:{own}/metrics") as answer:
            assert f'lengthwise_finished_total{{engine="{index}"}} 1.0' in answer.read().decode()
    for scheduler in schedulers:
        scheduler.shutdown()
    for index, folder in enumerate(("record", "record/engine-1", "record/engine-2")):
        _, line = (tmp_path / folder / "requests.jsonl").read_text().splitlines()
        assert json.loads(line)["id"] == f"of-{index}"
        status = status_of(path, index)
        assert (status["engine"], status["counters"]["finished"]) == (index, 1)
    answers, _ = read_answers(tmp_path / "log")
    assert sorted(answer.header["engine"] for answer in answers) == [0, 1, 2]


def test_a_port_that_is_taken_means_the_next_free_one(path: Path) -> None:
    with closing(socket.socket()) as listener:
        listener.bind(("0.0.0.0", 0))
        listener.listen()
        taken = listener.getsockname()[1]
        path.write_text(json.dumps({"metrics_port": taken}))
        scheduler = build_scheduler(Scheduler, lengthwise={"settings": str(path)})
        port = status_of(path)["metrics_port"]
        assert taken < port < taken + 64
        assert answers_at(port)
        scheduler.shutdown()
