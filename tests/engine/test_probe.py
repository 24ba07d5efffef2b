"""collect → train-probe → serve --policy trail, as a user runs them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.compare.state_collection import TRAIN_STATES
from lengthwise.probe.states import open_states
from lengthwise.serve.listen import free_port
from lengthwise.settings import status_path

pytestmark = [pytest.mark.engine, pytest.mark.slow]

COMMAND = [sys.executable, "-c", "from lengthwise.cli.main import main; main()"]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
START_S = 400.0
PROMPTS = 150


def run(*arguments: str) -> Any:
    """Run a verb to its end; its JSON."""
    finished = subprocess.run(
        [*COMMAND, *arguments, "--json"], capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stderr[-3000:]
    return json.loads(finished.stdout)


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection that was stopped half-way and taken up again."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = tmp_path_factory.mktemp("states")
    arguments = ["collect", "reference", "--prompts", str(PROMPTS), "--out", str(folder)]
    with subprocess.Popen(
        [*COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        deadline = time.monotonic() + START_S
        while not (folder / "meta.json").exists():
            assert process.poll() is None, process.communicate()[1][-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1, errors[-3000:]
    assert "the same command goes on from there" in errors.strip().splitlines()[-1]
    assert "Traceback" not in errors
    result = run(*arguments)
    assert result["requests"] == result["asked"] == PROMPTS
    assert result["dropped_states"] == 0
    return folder


@pytest.fixture(scope="module")
def probe(states: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    report = run("train-probe", str(states), "--layer", "3", "--out", str(folder))
    assert report
    return folder


def test_what_is_collected_is_whole(states: Path) -> None:
    found = open_states(states)
    assert found.meta.layers == [0, 1, 2, 3, 4, 5]
    assert found.meta.layers_total == 5
    lengths, finished = found.requests.length, found.requests.finished
    assert finished.mean() > 0.9
    counts = np.bincount(found.moments.request, minlength=PROMPTS)
    training = found.requests.split == 0
    assert (counts[training] == np.minimum(lengths[training] - 1, TRAIN_STATES[1])).all()
    assert (counts[~training] == lengths[~training] - 1).all()
    assert 0.6 < training.mean() < 0.95
    for layer in found.meta.layers:
        assert np.isfinite(found.decode_states(layer)).all()
        assert np.isfinite(found.prompt_pooled(layer, "mean")).all()


def test_trail_serves_with_the_probe(probe: Path, tmp_path: Path) -> None:
    port = free_port()
    settings = tmp_path / "settings.json"
    arguments = ["serve", "reference", "--policy", "trail", "--probe", str(probe)]
    arguments += ["--interval", "2", "--settings", str(settings), "--port", str(port)]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [*COMMAND, *arguments], stdout=err, stderr=err, env=os.environ, text=True
        )
    try:
        deadline = time.monotonic() + START_S
        while "ready at" not in (tmp_path / "err").read_text():
            assert process.poll() is None, (tmp_path / "err").read_text()[-3000:]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        body = {"model": "reference", "prompt": "Hello", "max_tokens": 40, "ignore_eos": True}
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        with DIRECT.open(request, timeout=60) as response:
            assert json.load(response)["usage"]["completion_tokens"] == 40
        time.sleep(0.5)
        status: dict[str, Any] = json.loads(status_path(settings).read_text())
        counters = status["counters"]
        # One from the prompt, and one every second of 39 tokens that were computed on.
        assert counters["probe_predictions"] in (20, 21)
        assert counters["probe_failures"] == counters["probe_dropped"] == 0
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_probe_for_another_model_ends_in_one_line(probe: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for file in probe.iterdir():
        if file.is_file():
            (other / file.name).write_bytes(file.read_bytes())
    config = json.loads((other / "config.json").read_text())
    config["model_fingerprint"] = "another"
    (other / "config.json").write_text(json.dumps(config))
    arguments = ["serve", "reference", "--policy", "trail", "--probe", str(other)]
    finished = subprocess.run(
        [*COMMAND, *arguments, "--port", str(free_port())],
        capture_output=True,
        text=True,
        check=False,
        timeout=START_S,
    )
    assert finished.returncode == 2
    last = finished.stderr.strip().splitlines()[-1]
    assert last.startswith("lengthwise: the vLLM server ended: ")
    assert "was trained for" in last
