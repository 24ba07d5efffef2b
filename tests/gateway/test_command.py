"""The gateway as a command: what it refuses, and how it ends, with real processes and signals."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.workload.length_log import read_answers
from tests.support.command_line import Run
from tests.support.gateways import body, until
from tests.support.small_upstream import small_upstream

LENGTHWISE = [sys.executable, "-c", "from lengthwise.cli.main import main; main()"]
COMMAND = [*LENGTHWISE, "gateway"]
KEY = "sk-in-the-highlands"
GOOD = ["--upstream", "http://127.0.0.1:9", "--max-inflight", "2", "--port", "0"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--upstream", "localhost:8000"], "http://localhost:8000"),
        (["--upstream", "http://a,http://a/"], "twice"),
        (["--max-inflight", "0"], "at least 1, or auto"),
        (["--max-inflight", "many"], "at least 1, or auto"),
        (["--policy", "srtp"], "did you mean 'srpt'"),
        (["--policy", "srpt:preemption=pays"], "for the scheduler inside an engine"),
        (["--policy", "trail"], "hidden states"),
        (["--policy", "mlfq"], "take back nothing"),
        (["--policy", "shortest-prefill-first"], "prefix cache"),
        (["--predictor", "no/such"], "no/such"),
        (["--predictor", "declard"], "did you mean 'declared'"),
        (["--predictor", "declared", "--tokenizer", "/nowhere"], "/nowhere"),
        (["--settings", "{settings}"], "journal"),
        (["--settings", "{settings}", "--policy", "fcfs"], "leave --policy out"),
        (["--learn"], "add --log DIR"),
        (["--learn-every", "1000"], "--learn-every is for learning: add --learn"),
        (["--log-text"], "add --log DIR"),
        (["--log", "{settings}/log"], "length_log"),
        (["--port", "{taken}"], "choose another --port"),
        (["--host", "no.such.host.invalid"], "--host"),
        (["--host", "a..b"], "--host a..b: no name of a host"),
        (["--upstream", "http://a..b:8000"], "http://localhost:8000"),
        (["--ssl-certfile", "no/cert"], "no/cert"),
        (["--ssl-keyfile", "no/key"], "--ssl-certfile"),
        (["--upstream-ca", "no/ca", "--upstream", "https://a"], "no/ca: cannot be used"),
        (["--upstream-ca", "{settings}"], "no upstream is an https one"),
        (["--queue-timeout", "0"], "--queue-timeout"),
        (["--max-queue-per-key", "0"], "--max-queue-per-key"),
    ],
)
def test_what_is_wrong_is_one_line(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text('{"policy": "srpt", "predictor": "declared", "journal": "j"}')
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with socket.create_server(("0.0.0.0", 0)) as taken:
        places = {"{settings}": str(settings), "{taken}": str(taken.getsockname()[1])}
        for place, value in places.items():
            arguments = [each.replace(place, value) for each in arguments]
        ended = run("gateway", *GOOD, *arguments)
    line = ended.err.strip().splitlines()[-1]
    assert ended.code == 2
    assert line.startswith("lengthwise: ")
    assert words in line


@asynccontextmanager
async def started(folder: Path, *arguments: str) -> AsyncIterator[tuple[str, Any]]:
    with (folder / "err").open("w") as err:
        command = [*COMMAND, "--host", "127.0.0.1", "--port", "0", "--json", *arguments]
        process = await asyncio.create_subprocess_exec(
            *command,
            stdout=subprocess.PIPE,
            stderr=err,
            env=os.environ | {"XDG_STATE_HOME": str(folder)},
        )
        try:
            assert process.stdout is not None
            said = await process.stdout.readline()
            yield json.loads(said)["url"], process
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def told(folder: Path, *arguments: str) -> Any:
    """What a command says of a gateway of this folder, as JSON."""
    process = await asyncio.create_subprocess_exec(
        *LENGTHWISE,
        *arguments,
        "--json",
        stdout=subprocess.PIPE,
        env=os.environ | {"XDG_STATE_HOME": str(folder)},
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    return json.loads(out)


async def ask(session: aiohttp.ClientSession, url: str, user: str, tokens: int, **more: Any) -> Any:
    headers = {"Authorization": f"Bearer {KEY}"}
    asked = body(user, tokens, **more)
    async with session.post(url + "/v1/completions", json=asked, headers=headers) as response:
        return response.status, await response.text()


async def metric(session: aiohttp.ClientSession, url: str, name: str) -> float:
    async with session.get(url + "/metrics") as response:
        page = await response.text()
    return float(page.split(f"\n{name} ")[1].split()[0])


async def waiting(session: aiohttp.ClientSession, url: str) -> float:
    return await metric(session, url, "lengthwise_gateway_waiting")


def test_sigterm_with_a_full_queue_serves_what_it_can_in_time(tmp_path: Path) -> None:
    """Nothing new is taken; what waits is served on; nothing was cut, so the exit code is 0. Long,
    as its neighbours are: a process is started."""

    async def run() -> None:
        async with small_upstream() as upstream, aiohttp.ClientSession() as session:
            arguments = ["--upstream", upstream.url, "--max-inflight", "2", "--max-queue", "12"]
            arguments += ["--log", str(tmp_path / "log"), "--shutdown-timeout", "60"]
            async with started(tmp_path, *arguments) as (url, process):
                upstream.hold.clear()
                asked = [
                    asyncio.create_task(ask(session, url, str(number), 4, stream=True))
                    for number in range(20)
                ]
                await until(lambda: sum(each.done() for each in asked) == 6)
                process.send_signal(signal.SIGTERM)
                while (await ask(session, url, "late", 1))[0] != 503:
                    await asyncio.sleep(0.01)
                upstream.hold.set()
                said = await asyncio.gather(*asked)
                assert await asyncio.wait_for(process.wait(), 30) == 0
                statuses = [status for status, _ in said]
                assert (statuses.count(200), statuses.count(429)) == (14, 6)
                assert all("[DONE]" in text for status, text in said if status == 200)
                assert "late" not in upstream.begun
                assert set(upstream.begun.values()) == {1}

    asyncio.run(run())
    lines = (tmp_path / "err").read_text()
    assert lines.splitlines()[-1] == "lengthwise: stopped"
    assert KEY not in lines
    answers, _ = read_answers(tmp_path / "log")
    assert [each.output_tokens for each in answers] == [4] * 14


def test_what_is_not_over_in_time_is_cut_and_the_exit_code_says_so(tmp_path: Path) -> None:
    """Long, since exit codes and signals are a process's own: most of it is the gateway's start."""

    async def run() -> None:
        async with small_upstream() as upstream, aiohttp.ClientSession() as session:
            arguments = ["--upstream", upstream.url, "--max-inflight", "1"]
            async with started(tmp_path, *arguments, "--shutdown-timeout", "0.2") as (url, process):
                endless = {"stream": True, "hints": {"pause_s": 0.05}}
                running = asyncio.create_task(ask(session, url, "runs", 10_000, **endless))
                await until(lambda: upstream.in_flight == 1)
                waits = [asyncio.create_task(ask(session, url, f"{k}", 3)) for k in range(5)]
                while await waiting(session, url) < 5:
                    await asyncio.sleep(0.01)
                process.send_signal(signal.SIGTERM)
                assert {status for status, _ in await asyncio.gather(*waits)} == {503}
                status, text = await running
                assert status == 200
                last = [part for part in text.split("\n\n") if part.strip()][-1]
                assert "shut down" in json.loads(last.removeprefix("data: "))["error"]["message"]
                assert await asyncio.wait_for(process.wait(), 30) == 1
                assert upstream.begun == {"runs": 1}

    asyncio.run(run())
    assert "1 answers were cut off" in (tmp_path / "err").read_text().splitlines()[-1]


def test_it_starts_before_its_upstream_and_the_settings_are_watched(tmp_path: Path) -> None:
    """Long, since an upstream that comes late is waited for as in production, by the clock."""

    async def run() -> None:
        async with small_upstream() as upstream, aiohttp.ClientSession() as session:
            await upstream.stop()
            settings = tmp_path / "settings.json"
            arguments = ["--upstream", upstream.url, "--max-inflight", "1"]
            arguments += ["--settings", str(settings), "--policy", "fcfs"]
            async with started(tmp_path, *arguments) as (url, process):
                errors = tmp_path / "err"
                assert "cannot be reached yet (Connection refused)" in errors.read_text()
                assert (await ask(session, url, "early", 1))[0] == 503
                await upstream.start()
                while (await ask(session, url, "now", 1))[0] != 200:
                    await asyncio.sleep(0.05)
                settings.write_text('{"policy": "sjf", "predictor": "declared"}')
                status = tmp_path / "settings.status.json"
                await until(lambda: json.loads(status.read_text())["policy"] == "sjf", 60)
                async with session.get(url + "/health") as response:
                    assert (await response.json())["policy"] == "sjf"
                said = await told(tmp_path, "status", url)
                assert (said[0]["policy"], said[0]["off"]) == ("sjf", False)
                assert said[0]["rolling_tau"] is None
                assert said[0]["below_tau_floor"] is False
                assert (await told(tmp_path, "off", url))["engines"] == 1
                (said,) = await told(tmp_path, "status", url)
                assert (said["policy"], said["off"], said["server"]) == ("fcfs", True, url)
                assert "settings.json.off is there" in errors.read_text()
                assert (await told(tmp_path, "on", url))["engines"] == 1
                (said,) = await told(tmp_path, "status", url)
                assert (said["policy"], said["off"]) == ("sjf", False)
                settings.write_text('{"policy": "trail", "predictor": "declared"}')
                await until(lambda: json.loads(status.read_text())["state"] == "refused", 60)
                assert "hidden states" in json.loads(status.read_text())["error"]
                process.send_signal(signal.SIGINT)
                assert await asyncio.wait_for(process.wait(), 30) == 0

    asyncio.run(run())


@pytest.mark.slow
def test_a_black_box_is_learnt_from_its_own_answers(tmp_path: Path) -> None:
    """Without a predictor, a hint or a tokenizer: usage alone, and short answers come first."""
    topics = (("name one river", 3), ("explain the tides", 40), ("write a long story", 160))

    async def run() -> None:
        async with small_upstream() as upstream, aiohttp.ClientSession() as session:
            arguments = ["--upstream", upstream.url, "--max-inflight", "4"]
            arguments += ["--policy", "sjf:max_overtakes=off"]
            arguments += ["--log", str(tmp_path / "log"), "--learn", "--learn-every", "200"]
            async with started(tmp_path, *arguments, "--max-queue", "1000") as (url, process):

                async def tell(number: int) -> None:
                    words, tokens = topics[number % 3]
                    asked = {
                        "model": "black-box",
                        "user": f"{words} {number}",
                        "messages": [{"role": "user", "content": f"{words}, number {number}"}],
                        "vllm_xargs": {TRUE_TOKENS: tokens + number % 7},
                    }
                    async with session.post(url + "/v1/chat/completions", json=asked) as response:
                        assert response.status == 200
                        await response.read()

                await asyncio.gather(*(tell(number) for number in range(420)))
                (status,) = tmp_path.rglob("*.status.json")
                await until(lambda: "p-0" in str(json.loads(status.read_text())["predictor"]), 120)
                upstream.order.clear()
                upstream.hold.clear()
                predictions = "lengthwise_predictions_total"
                before = await metric(session, url, predictions)
                asked = [asyncio.create_task(tell(number)) for number in range(1000, 1060)]
                while await waiting(session, url) < 56:
                    await asyncio.sleep(0.01)
                while await metric(session, url, predictions) < before + 60:
                    await asyncio.sleep(0.01)
                upstream.hold.set()
                await asyncio.gather(*asked)
                order = [topics.index(t) for u in upstream.order for t in topics if t[0] in u]
                # The first four went before anything else had come.
                assert sorted(order[4:]) == order[4:]
                process.send_signal(signal.SIGTERM)
                assert await asyncio.wait_for(process.wait(), 30) == 0

    asyncio.run(run())
