"""Learning while serving, as a user runs it: an engine, a swap, a killed learner, no failure."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from lengthwise.reference.prompts import generate
from lengthwise.serve.listen import free_port
from lengthwise.settings import status_path
from lengthwise.workload.length_log import read_answers
from tests.support.commands import DIRECT, assert_gone, children_of, last_line, started, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.slow]
CLIENTS = 12


class Traffic:
    """Clients that ask one prompt after the other, and from the first again, until told to stop."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1/chat/completions"
        self.prompts = [prompt.text for prompt in generate(4000, seed=5)]
        self._to_ask = itertools.cycle(self.prompts)
        self.answered = 0
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while not self._stopped.is_set():
            with self._lock:
                prompt = next(self._to_ask)
            try:
                self._ask(prompt)
                self.answered += 1
            except Exception as error:
                self.failures.append(repr(error))

    def _ask(self, prompt: str) -> None:
        messages = [{"role": "user", "content": prompt}]
        body = {"model": "reference", "messages": messages, "max_tokens": 600}
        request = urllib.request.Request(
            self.url, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with DIRECT.open(request, timeout=120) as response:
            assert json.load(response)["usage"]["completion_tokens"] > 0


def test_a_predictor_is_learnt_and_swapped_while_serving(tmp_path: Path) -> None:
    port = free_port()
    settings, log = tmp_path / "settings.json", tmp_path / "log"

    def status() -> dict[str, Any]:
        value: dict[str, Any] = json.loads(status_path(settings).read_text())
        return value

    def learnt() -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads((log / "learner.json").read_text())
        except OSError:
            return {}
        return value

    arguments = ["serve", "reference", "--policy", "ltr", "--settings", str(settings)]
    arguments += ["--learn", "--learn-every", "120", "--log", str(log), "--port", str(port)]
    with started(tmp_path, *arguments) as process:
        wait_for(lambda: "ready at" in (tmp_path / "err").read_text(), process, tmp_path)
        assert json.loads(settings.read_text())["predictor"] == "none"
        traffic = Traffic(port)
        try:
            wait_for(lambda: learnt().get("accepted", 0) >= 1, process, tmp_path)
            placed = learnt()["placed"]
            wait_for(lambda: status()["predictor"] == placed, process, tmp_path)
            assert status()["state"] == "active"
            before = traffic.answered
            wait_for(lambda: traffic.answered > before + 100, process, tmp_path)
            assert status()["counters"]["predictions"] > 50
            (learner,) = (
                child
                for child in children_of(process)
                if "lengthwise.learn.process" in child.cmdline()
            )
            os.kill(learner.pid, signal.SIGKILL)
            wait_for(
                lambda: "killed by signal 9" in (tmp_path / "err").read_text(), process, tmp_path
            )
            wait_for(lambda: learnt()["restarts"] == 1, process, tmp_path)
            before = traffic.answered
            wait_for(lambda: traffic.answered > before + 50, process, tmp_path)
        finally:
            traffic.stop()
        assert traffic.failures == []
        assert json.loads(settings.read_text())["policy"] == "ltr"
        counters = status()["counters"]
        assert counters["settings_refused"] == 0
        assert counters["fallbacks"] == 0
        children = children_of(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    assert_gone(children)
    assert last_line(tmp_path) == "lengthwise: stopped"
    answers, reader = read_answers(log)
    assert len(answers) == traffic.answered
    assert (reader.damaged, reader.unreadable, reader.unfinished) == (0, {}, False)
    assert any(answer.values["predictor"] == Path(placed).name for answer in answers)
    for path in log.glob("lengths-*"):
        assert "completion" not in path.read_text()
        assert not any(prompt in path.read_text() for prompt in traffic.prompts[:50])
