"""The commands as users run them: real processes, a real engine, Ctrl-C, and nothing left over."""

from __future__ import annotations

import json
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lengthwise.serve.listen import free_port
from lengthwise.settings import status_path
from tests.support.commands import (
    COMMAND,
    DIRECT,
    START_S,
    assert_gone,
    children_of,
    last_line,
    started,
    wait_for,
)
from tests.support.small_backbones import opt_backbone

pytestmark = pytest.mark.engine


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.jsonl"
    rows = [{"prompt": f"Name {row} cities.", "length": 5 + 3 * (row % 20)} for row in range(60)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_a_bench_stopped_by_ctrl_c_keeps_its_rounds(tmp_path: Path, table: Path) -> None:
    results = tmp_path / "results"
    options = ["--policy", "fcfs,oracle", "--repeats", "500", "--requests", "40", "--burst"]
    with started(tmp_path, "bench", str(table), *options, "--out", str(results)) as process:
        wait_for((results / "round-002.parquet").exists, process, tmp_path)
        children = children_of(process)
        assert len(children) >= 3  # the client, the API server and the engine core
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 1
    assert_gone(children)
    assert last_line(tmp_path).startswith("lengthwise: stopped: ")
    assert f"lengthwise report {results}" in last_line(tmp_path)

    shown = subprocess.run(
        [*COMMAND, "report", str(results), "--json"], capture_output=True, text=True, check=True
    )
    rows = {row["policy"]: row for row in json.loads(shown.stdout)}
    assert set(rows) == {"fcfs", "oracle"}
    assert rows["fcfs"]["load"] == "burst"
    assert rows["fcfs"]["failed"] == 0
    assert rows["fcfs"]["completed"] >= 40
    # A B in the first repeat, B A in the second.
    lines = (results / "rounds.jsonl").read_text().splitlines()[1:]
    assert [json.loads(line)["policy"] for line in lines[:3]] == ["fcfs", "oracle", "oracle"]


@dataclass(frozen=True)
class Server:
    """`lengthwise serve reference`, up, with a settings file in its folder."""

    process: subprocess.Popen[str]
    port: int
    folder: Path

    @property
    def settings(self) -> Path:
        return self.folder / "settings.json"

    def status(self) -> dict[str, Any]:
        """What the scheduler says of itself."""
        value: dict[str, Any] = json.loads(status_path(self.settings).read_text())
        return value

    def wait_for(self, what: Callable[[], object]) -> None:
        wait_for(what, self.process, self.folder)

    def answer(self, tokens: int, prompt: str = "Hello") -> int:
        """Tokens of an answer of which so many were asked for."""
        body = {"model": "reference", "prompt": prompt, "max_tokens": tokens, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with DIRECT.open(request, timeout=200) as response:
            return int(json.load(response)["usage"]["completion_tokens"])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One start for all tests of a server that runs; the last of them stops it."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    settings = folder / "settings.json"
    arguments = ["serve", "reference", "--settings", str(settings), "--port", str(port)]
    with started(folder, *arguments, "--max-num-seqs", "4") as process:
        wait_for(lambda: "ready at" in (folder / "err").read_text(), process, folder)
        assert json.loads(settings.read_text())["policy"] == "srpt"
        yield Server(process, port, folder)


def test_a_server_takes_up_new_settings(server: Server) -> None:
    assert server.answer(7) == 7
    server.settings.write_text('{"policy": "fcfs"}')
    server.wait_for(lambda: server.status()["policy"] == "fcfs")
    server.settings.write_text('{"policy": "nonsense"}')
    server.wait_for(lambda: server.status()["state"] == "refused")
    assert "nonsense" in server.status()["error"]
    assert server.status()["policy"] == "fcfs"
    assert server.answer(3) == 3


@pytest.mark.slow
def test_a_predictors_worker_killed_in_mid_run_costs_no_request(
    server: Server, tmp_path: Path
) -> None:
    pytest.importorskip("torch", reason="needs torch: pip install 'lengthwise[encoder]'")
    predictor = train_encoder(tmp_path)

    def error(number: int) -> int:
        """Tokens too many in an answer."""
        tokens = 20 + number % 60
        return server.answer(tokens, f"Write {number} words about bees.") - tokens

    def counters() -> dict[str, int]:
        counted: dict[str, int] = server.status()["counters"]
        return counted

    def workers() -> list[Any]:
        children = children_of(server.process)
        return [
            child for child in children if "lengthwise.predict.worker" in " ".join(child.cmdline())
        ]

    server.settings.write_text(json.dumps({"policy": "ltr", "predictor": str(predictor)}))
    server.wait_for(lambda: server.status()["policy"] == "ltr")
    (worker,) = workers()
    before = counters()["predictions"]
    with ThreadPoolExecutor(120) as pool:
        answers = [pool.submit(error, number) for number in range(120)]
        server.wait_for(lambda: counters()["predictions"] > before)
        worker.kill()
        assert [answer.result() for answer in answers] == [0] * 120
    server.wait_for(lambda: counters()["worker_restarts"] == 1)
    server.wait_for(workers)
    before = counters()["predictions"]
    server.wait_for(lambda: error(0) or counters()["predictions"] > before)


def test_a_server_stops_cleanly(server: Server) -> None:
    children = children_of(server.process)
    assert children
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(timeout=60) == 0
    assert_gone(children)
    assert last_line(server.folder) == "lengthwise: stopped"


def train_encoder(tmp_path: Path) -> Path:
    """The folder of a small encoder, trained as users train one."""
    lines = [
        {"prompt": f"Write {row} words about bees.", "length": 5 + row % 90} for row in range(60)
    ]
    table = tmp_path / "answers.jsonl"
    table.write_text("".join(json.dumps(line) + "\n" for line in lines))
    backbone = opt_backbone(tmp_path / "backbone", [str(line["prompt"]) for line in lines])
    out = tmp_path / "p"
    options = ["--kind", "encoder", "--backbone", str(backbone), "--epochs", "1"]
    subprocess.run([*COMMAND, "train", str(table), *options, "--out", str(out)], check=True)
    return out


def test_a_killed_command_takes_its_server_along(tmp_path: Path) -> None:
    arguments = ["serve", "reference", "--policy", "fcfs", "--port", str(free_port())]
    with started(tmp_path, *arguments) as process:
        wait_for(lambda: len(children_of(process)) > 0, process, tmp_path)
        children = children_of(process)
        time.sleep(2.0)  # long enough for the child to have asked for its end
        process.kill()
        process.wait()
    assert_gone(children)


@pytest.mark.slow
def test_a_model_that_does_not_load_ends_in_one_line(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"model_type": "nonsense"}')
    port = str(free_port())
    arguments = ["serve", str(model), "--policy", "fcfs", "--port", port]
    with started(tmp_path, *arguments) as process:
        assert process.wait(timeout=START_S) == 1
    lines = (tmp_path / "err").read_text().strip().splitlines()
    assert lines[-1].startswith("lengthwise: the vLLM server ended: ")
    assert "nonsense" in lines[-1]


@pytest.mark.slow
def test_a_flag_that_vllm_does_not_know_ends_in_one_line(tmp_path: Path) -> None:
    arguments = ["serve", "reference", "--port", str(free_port()), "--no-such-flag", "3"]
    with started(tmp_path, *arguments) as process:
        assert process.wait(timeout=START_S) == 1
    assert "unrecognized arguments: --no-such-flag" in last_line(tmp_path)
