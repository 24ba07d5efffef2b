"""The learner's process: lowest priority, alive as long as its server, and no longer."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lengthwise.learn import process
from lengthwise.learn.learner import STATE_FILE, read_predictor, read_state
from lengthwise.learn.process import LearnerProcess
from lengthwise.serve.settings_file import say
from tests.support.length_logs import write_segment
from tests.support.logged_traffic import traffic
from tests.support.processes import has_ended
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


@pytest.fixture
def settings(tmp_path: Path) -> Path:
    path = tmp_path / "settings.json"
    path.write_text('{"policy": "ltr", "predictor": "none"}')
    write_segment(tmp_path / "log", *traffic(120))
    return path


def test_a_killed_learner_is_started_again_and_goes_on(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long, since a learner starts twice: only a real process can be killed."""
    monkeypatch.setattr(process, "_FIRST_PAUSE_S", 0.1)
    said: list[str] = []
    log = settings.parent / "log"
    with LearnerProcess(log, settings, 100, said.append) as learner:
        wait_until(lambda: os.getpriority(os.PRIO_PROCESS, learner.pid) == 19)
        wait_until(lambda: os.sched_getscheduler(learner.pid) == os.SCHED_IDLE)
        first = learner.pid
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: learner.restarts == 1 and learner.pid != first)
        assert "killed by signal 9" in said[0]
        assert "serving goes on" in said[0]
        wait_until(lambda: read_predictor(settings) != "none")
        # What it decided is written after the settings: there may be no file yet.
        wait_until(lambda: read_state(log).accepted == 1)
        assert read_state(log).restarts == 1
        second = learner.pid
        assert not has_ended(second)
    assert has_ended(second)
    assert len(said) == 1


def test_pauses_grow_while_it_keeps_ending(settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    said: list[tuple[float, str]] = []
    with LearnerProcess(settings, settings, 100, lambda s: said.append((time.monotonic(), s))):
        wait_until(lambda: len(said) >= 4)
    times = [when for when, _ in said]
    assert times[3] - times[2] > 0.15
    assert "ended with status 1" in said[0][1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the full disk is Linux's")
def test_it_is_started_again_though_nobody_can_be_told(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    for tell in (say, lambda line: print(line, file=sys.stderr, flush=True)):
        full = io.TextIOWrapper(io.FileIO("/dev/full", "w"), write_through=True)
        monkeypatch.setattr(sys, "stderr", full)
        with LearnerProcess(settings, settings, 100, tell) as learner:
            wait_until(lambda learner=learner: learner.restarts >= 2)


def test_it_is_started_again_once_it_can_be(
    settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(process.sys, "executable", "/bin/false")
    with LearnerProcess(settings, settings, 100, lambda line: None) as learner:
        first = learner.pid
        monkeypatch.setattr(process.sys, "executable", "/no/such")
        wait_until(lambda: learner.restarts >= 3)
        monkeypatch.setattr(process.sys, "executable", "/bin/false")
        before = learner.pid
        wait_until(lambda: learner.pid not in (first, before))


def test_it_ends_with_its_parent(settings: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path\n"
        "from lengthwise.learn.process import LearnerProcess\n"
        "learner = LearnerProcess(Path(sys.argv[1]), Path(sys.argv[2]), 9999, print)\n"
        "print(learner.pid, flush=True); time.sleep(600)\n"
    )
    log = settings.parent / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(log), str(settings)], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    wait_until((log / STATE_FILE).exists)
    parent.kill()
    parent.wait()
    wait_until(lambda: has_ended(pid))
