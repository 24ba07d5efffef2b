"""Several engines for real: two of one server behind one and four API servers, and two servers."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from prometheus_client.parser import text_string_to_metric_families

from lengthwise.counters import HELP
from lengthwise.learn.learner import STATE_FILE
from lengthwise.serve.command import REFERENCE, server_command
from lengthwise.serve.listen import free_port
from lengthwise.serve.vllm_server import Server
from lengthwise.serve.whereabouts import statuses
from lengthwise.settings import Settings
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.length_log import read_answers
from tests.support.commands import COMMAND, DIRECT, last_line, started, wait_for
from tests.support.streaming_client import Client

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

PRESET = "a100:llama-3-8b"
REQUESTS = 40


def scraped(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """What one of the API servers says, by name of the time series."""
    with DIRECT.open(f"http://127.0.0.1:{port}/metrics", timeout=60) as response:
        page = response.read().decode()
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def total(page: dict[str, list[tuple[dict[str, str], float]]], name: str) -> float:
    return sum(value for _, value in page[name])


def ask(port: int, count: int = REQUESTS) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(Client(port).complete, 20 + place) for place in range(count)]
        assert all(answer.result()["completion_tokens"] for answer in answers)


def said(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A verb of the command line, beside the servers of a folder."""
    environment = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    return subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, env=environment, timeout=100
    )


@pytest.mark.parametrize("api_servers", [1, 4])
def test_every_counter_is_there_once_for_each_engine(tmp_path: Path, api_servers: int) -> None:
    port, settings = free_port(), tmp_path / "settings.json"
    url = f"http://127.0.0.1:{port}"
    arguments = ["serve", "--emulate", PRESET, "--port", str(port), "--settings", str(settings)]
    arguments += ["--policy", "srpt", "--shadow", "--", "--data-parallel-size", "2"]
    with started(tmp_path, *arguments, "--api-server-count", str(api_servers)) as process:
        # Up to eight processes import vLLM at once.
        wait_for(lambda: "ready at" in (tmp_path / "err").read_text(), process, tmp_path, 1500.0)
        ask(port)
        wait_for(
            lambda: total(scraped(port), "lengthwise_finished_total") == REQUESTS,
            process,
            tmp_path,
        )
        # One connection each, so that all API servers come to answer.
        pages = [scraped(port) for _ in range(5 * api_servers)]
        for page in pages:
            for name in HELP:
                engines = Counter(
                    labels["engine"] for labels, _ in page[f"lengthwise_{name}_total"]
                )
                assert engines == {"0": 1, "1": 1}, name
            assert total(page, "lengthwise_finished_total") == REQUESTS
            assert total(page, "lengthwise_queue_time_seconds_count") == REQUESTS
            assert total(page, "lengthwise_shadow") == 2
            assert total(page, "vllm:request_success_total") == REQUESTS
        each = [value for _, value in pages[-1]["lengthwise_finished_total"]]
        assert min(each) > 0  # both have served
        found = statuses(settings)
        assert [(one["engine"], one["server"]) for one in found] == [(0, url), (1, url)]
        assert sorted(one["counters"]["finished"] for one in found) == sorted(map(int, each))
        lines = said("status", url, folder=tmp_path).stdout.splitlines()
        assert len(lines) == 2
        assert all("in shadow" in line and url in line for line in lines)
        switched = said("off", url, "--json", folder=tmp_path)
        assert json.loads(switched.stdout)["engines"] == 2


def test_nothing_is_there_unless_asked_for(tmp_path: Path) -> None:
    settings = tmp_path / "settings.json"
    Settings().write(settings)
    command = server_command(
        REFERENCE, settings, host="127.0.0.1", port=free_port(), emulate=parse_preset(PRESET)
    )
    with Server(command, tmp_path / "log") as server:
        server.wait_ready(400)
        page = server.call("/metrics")
    assert b"vllm:" in page
    assert b"lengthwise" not in page


def test_two_servers_with_one_settings_file(tmp_path: Path) -> None:
    """Each has its own numbers, files and logs; one learner reads what both have logged."""
    settings, log = tmp_path / "settings.json", tmp_path / "log"
    settings.write_text(
        json.dumps({"policy": "ltr", "predictor": "none", "length_log": {"folder": str(log)}})
    )
    ports = [free_port(), free_port()]
    folders = [tmp_path / "first", tmp_path / "second"]
    with ExitStack() as stack:
        processes = []
        for port, folder in zip(ports, folders, strict=True):
            folder.mkdir()
            arguments = ["serve", "--emulate", PRESET, "--settings", str(settings)]
            arguments += ["--learn", "--port", str(port)]
            processes.append(stack.enter_context(started(folder, *arguments)))
        for process, folder in zip(processes, folders, strict=True):
            wait_for(lambda f=folder: "ready at" in (f / "err").read_text(), process, folder)
        for port, count in zip(ports, (12, 30), strict=True):
            ask(port, count)
        for port, count in zip(ports, (12, 30), strict=True):
            wait_for(
                lambda p=port, c=count: total(scraped(p), "lengthwise_finished_total") == c,
                processes[0],
                folders[0],
            )
            assert [labels["engine"] for labels, _ in scraped(port)["lengthwise_steps_total"]] == [
                "0"
            ]
        wait_for(
            lambda: sorted(one["counters"]["finished"] for one in statuses(settings)) == [12, 30],
            processes[0],
            folders[0],
        )
        by_server = {one["server"]: one["counters"]["finished"] for one in statuses(settings)}
        assert [by_server[f"http://127.0.0.1:{port}"] for port in ports] == [12, 30]
        lines = said("status", str(settings), folder=folders[0]).stdout.splitlines()
        assert len(lines) == 2

        wait_for(lambda: learnt(log).get("answers") == 42, processes[0], folders[0])
        answers, _ = read_answers(log)
        assert Counter(answer.header["server"] for answer in answers) == by_server
        errors = [(folder / "err").read_text() for folder in folders]
        assert sum("another server's learner" in text for text in errors) == 1
        assert sum("another engine of the same number" in text for text in errors) == 1
        # The one that waited goes on where the other one ends.
        worked = next(n for n, text in enumerate(errors) if "another server's learner" not in text)
        processes[worked].terminate()
        processes[worked].wait(timeout=100)
        other = processes[1 - worked]
        ask(ports[1 - worked], 3)
        wait_for(lambda: learnt(log).get("answers") == 45, other, folders[1 - worked])
    assert "Traceback" not in last_line(folders[worked])


def learnt(log: Path) -> dict[str, Any]:
    try:
        value: dict[str, Any] = json.loads((log / STATE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return value


def test_a_server_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    for verb in (["status", url], ["off", url], ["explain", url, "cmpl-1"]):
        done = said(*verb, folder=tmp_path)
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "has noted no server" in done.stderr
