"""An emulated server as users run it: real HTTP, GPU's limits, policies, a polite end."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from lengthwise.serve.listen import free_port
from lengthwise.settings import status_path
from tests.support.commands import (
    COMMAND,
    DIRECT,
    assert_gone,
    children_of,
    last_line,
    started,
    wait_for,
)
from tests.support.streaming_client import Client

pytest.importorskip("vllm", reason="vLLM is not installed")

pytestmark = pytest.mark.engine

PRESET = "a100:llama-3-8b"


def test_an_emulated_server_streams_obeys_its_policy_and_ends_politely(tmp_path: Path) -> None:
    port, settings = free_port(), tmp_path / "settings.json"
    client = Client(port)
    arguments = ["serve", "--emulate", PRESET, "--settings", str(settings), "--port", str(port)]
    # How often a request may be overtaken is bounded by default.
    flags = ["--policy", "srpt:max_overtakes=off", "--max-num-seqs", "4"]
    flags += ["--shutdown-timeout", "60"]
    with started(tmp_path, *arguments, *flags) as process:
        wait_for(lambda: "ready at" in (tmp_path / "err").read_text(), process, tmp_path)
        children = children_of(process)

        (model,) = json.load(client.open("/models"))["data"]
        assert (model["id"], model["max_model_len"]) == ("llama-3-8b", 8192)

        events = list(client.stream(37))
        assert events[-1]["usage"]["completion_tokens"] == 37
        choices = [event["choices"][0] for event in events if event["choices"]]
        assert choices[-1]["finish_reason"] == "stop"
        assert len("".join(choice["delta"]["content"] for choice in choices).split()) > 10

        assert client.complete(30, max_tokens=12)["finish_reason"] == "length"
        story = {"vllm_xargs": {}, "prompt": "Tell me a story about the sea."}
        drawn = [client.complete(1, **story)["completion_tokens"] for _ in range(2)]
        assert drawn[0] == drawn[1] > 1
        ended = short_and_long(client)
        assert ended[:8] == ["short"] * 8

        settings.write_text('{"policy": "fcfs"}')
        wait_for(
            lambda: json.loads(status_path(settings).read_text())["policy"] == "fcfs",
            process,
            tmp_path,
        )
        assert short_and_long(client)[:4] == ["long"] * 4

        with ThreadPoolExecutor(6) as pool:
            answers = [pool.submit(client.complete, 150) for _ in range(6)]
            wait_for(lambda: is_busy(port), process, tmp_path)
            process.send_signal(signal.SIGTERM)
            assert [answer.result()["completion_tokens"] for answer in answers] == [150] * 6
        assert process.wait(timeout=100) == 0
    assert_gone(children)
    assert last_line(tmp_path) == "lengthwise: stopped"


def short_and_long(client: Client) -> list[str]:
    """The order in which eight long answers and then eight short ones end, on four slots."""
    ended: list[str] = []

    def ask(kind: str, tokens: int) -> None:
        assert client.complete(tokens)["completion_tokens"] == tokens
        ended.append(kind)

    with ThreadPoolExecutor(16) as pool:
        jobs: list[Future[None]] = []
        for kind, tokens in (("long", 300), ("short", 5)):
            jobs += [pool.submit(ask, kind, tokens) for _ in range(8)]
            time.sleep(1.0)  # the long ones hold all slots by then
        for job in jobs:
            job.result()
    return ended


def is_busy(port: int) -> bool:
    with DIRECT.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        lines = response.read().decode().splitlines()
    (running,) = (line for line in lines if line.startswith("vllm:num_requests_running{"))
    return float(running.split()[-1]) > 0


@pytest.mark.slow
def test_two_replicas_share_the_load_and_say_what_they_cut_off(tmp_path: Path) -> None:
    port = free_port()
    client = Client(port)
    arguments = ["serve", "--emulate", PRESET, "--port", str(port), "--data-parallel-size", "2"]
    with started(tmp_path, *arguments) as process, ThreadPoolExecutor(8) as pool:
        wait_for(lambda: "ready at" in (tmp_path / "err").read_text(), process, tmp_path)
        children = children_of(process)
        short = [pool.submit(client.complete, 20) for _ in range(8)]
        assert [answer.result()["completion_tokens"] for answer in short] == [20] * 8
        # No time to finish them was asked for.
        cut = [pool.submit(client.complete, 1500) for _ in range(8)]
        time.sleep(2.0)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=100) == 1
        assert all(answer.exception() or answer.result() for answer in cut)
    assert_gone(children)
    assert "open requests were cut off" in last_line(tmp_path)


@pytest.mark.slow
def test_what_the_engine_refuses_is_one_line_and_exit_code_2() -> None:
    arguments = ["--emulate", PRESET, "--port", str(free_port()), "--enable-prompt-embeds"]
    finished = subprocess.run([*COMMAND, "serve", *arguments], capture_output=True, text=True)
    assert finished.returncode == 2
    assert "only models that generate text from text" in finished.stderr.splitlines()[-1]
