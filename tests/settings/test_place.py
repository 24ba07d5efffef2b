"""Several servers with one settings file: each engine has files of its own that say whose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lengthwise.files import take_lock
from lengthwise.learn.learner import STATE_FILE
from lengthwise.serve.journal_reader import explain
from lengthwise.serve.whereabouts import statuses, switch
from lengthwise.settings import Settings, status_path
from lengthwise.settings.file import SERVER, own_folder, own_status
from tests.support.waiting import wait_until

PATIENCE_S = 60.0


def test_who_comes_second_takes_the_next_name_and_says_so(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    first, one = own_folder(tmp_path, 0), own_folder(tmp_path, 1)
    assert (first.path, one.path) == (tmp_path, tmp_path / "engine-1")
    assert log.records == []
    second, third = own_folder(tmp_path, 0), own_folder(tmp_path, 0)
    assert [second.path.name, third.path.name] == ["engine-0-2", "engine-0-3"]
    assert own_folder(tmp_path, 1).path.name == "engine-1-2"
    lines = [record.getMessage() for record in log.records]
    assert len(lines) == 3
    assert all("another engine of the same number" in line and "\n" not in line for line in lines)
    first.close()
    assert own_folder(tmp_path, 0).path == tmp_path


def test_a_name_is_free_again_however_its_owner_ended(tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    code = (
        "import sys, time; from pathlib import Path;"
        "from lengthwise.settings.file import own_status;"
        "place = own_status(Path(sys.argv[1]), 0); print(place.path.name, flush=True);"
        "time.sleep(99)"
    )
    command = [sys.executable, "-c", code, str(settings)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline().strip() == "settings.status.json"
        place = own_status(settings, 0)
        assert place.path.name == "settings.status-2.json"
        place.close()
        owner.send_signal(signal.SIGKILL)
    place = own_status(settings, 0)
    assert place.path == status_path(settings)
    place.close()


def test_where_nothing_can_be_locked_the_first_name_is_taken(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    place = own_folder(tmp_path / "file" / "record", 2)
    assert place.path == tmp_path / "file" / "record" / "engine-2"
    place.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "settings.json"


@pytest.fixture
def servers(path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The engines of two servers with one settings file; each has served a request."""
    pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")
    from bench.support.engine_harness import Ask, build_scheduler
    from lengthwise.vllm import Scheduler
    from tests.support.checked_engine import CheckedEngine

    folders = {"record": str(path.parent / "record"), "journal": "journal"}
    path.write_text(json.dumps({**folders, "length_log": {"folder": "log"}}))
    schedulers = []
    for port in (8001, 8002):
        monkeypatch.setenv(SERVER, f"http://127.0.0.1:{port}")
        schedulers.append(build_scheduler(Scheduler, lengthwise={"settings": str(path)}))
        engine = CheckedEngine(schedulers[-1])
        engine.add(Ask(f"of-{port}", [7] * 8, 5))
        engine.drain()
    yield schedulers
    for scheduler in schedulers:
        scheduler.shutdown()


def test_two_servers_with_one_settings_file_are_told_apart(
    path: Path,
    servers: list[Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lengthwise.cli.operate import status
    from lengthwise.errors import LengthwiseError
    from lengthwise.serve.whereabouts import note_settings
    from lengthwise.workload.length_log import read_answers

    found = statuses(path)
    assert [each["server"][-4:] for each in found] == ["8001", "8002"]
    assert [each["engine"] for each in found] == [0, 0]
    status(str(path))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "http://127.0.0.1:8001, engine 0" in lines[0]
    assert f"process {os.getpid()}: policy fcfs" in lines[0]
    monkeypatch.setenv("XDG_STATE_HOME", str(path.parent / "state"))
    for port in (8001, 8003):
        note_settings(port, path)
    status("http://localhost:8001")
    assert "8001" in capsys.readouterr().out
    with pytest.raises(LengthwiseError, match="is the server up"):
        status("http://localhost:8003")
    assert switch(path, True, PATIENCE_S) == 2
    for scheduler in servers:
        scheduler.shutdown()
    for port, folder in ((8001, "record"), (8002, "record/engine-0-2")):
        _, line = (path.parent / folder / "requests.jsonl").read_text().splitlines()
        assert json.loads(line)["id"] == f"of-{port}"
        assert explain(path.parent / "journal", f"of-{port}").request == f"of-{port}"
    answers, _ = read_answers(path.parent / "log")  # as the learner reads them: all
    assert sorted(answer.header["server"][-4:] for answer in answers) == ["8001", "8002"]


def test_one_learner_works_in_a_log_at_a_time(
    tmp_path: Path, path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    from lengthwise.learn.process import LearnerProcess

    Settings(policy="ltr", predictor="none").write(path)
    log = tmp_path / "log"
    log.mkdir()
    lock = take_lock(log / ".learner.lock")  # another server's learner
    assert lock is not None
    (log / STATE_FILE).write_text(json.dumps({"schema": "lengthwise.learner/1", "accepted": 7}))
    with LearnerProcess(log, path, 1000, print):
        wait_until(lambda: "this one waits for its end" in capfd.readouterr().err)
        assert json.loads((log / STATE_FILE).read_text()).get("answers") is None
        lock.close()
        wait_until(lambda: json.loads((log / STATE_FILE).read_text()).get("answers") is not None)
    state = json.loads((log / STATE_FILE).read_text())
    assert (state["accepted"], state["restarts"]) == (7, 0)  # where the other one had stopped
