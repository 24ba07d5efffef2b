"""A gateway before vLLM's own server, which emulates a GPU: keys, order and slots."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.measure.server_metrics import parse_metrics
from lengthwise.serve.listen import free_port
from lengthwise.settings import LengthLogSettings, Settings
from lengthwise.workload.length_log import read_answers
from tests.support.commands import started, wait_for
from tests.support.gateways import Client, body, gateway_before, until

pytestmark = [pytest.mark.engine, pytest.mark.slow]

KEY = "sk-in-the-highlands"
HEADERS = {"Authorization": f"Bearer {KEY}"}


def test_short_answers_come_first_from_a_server_that_knows_nothing_of_it(tmp_path: Path) -> None:
    port = free_port()
    arguments = ["serve", "--emulate", "a100:llama-3-8b", "--policy", "fcfs", "--port", str(port)]
    flags = ["--", "--max-num-seqs", "4", "--api-key", KEY]
    log = LengthLogSettings(folder=str(tmp_path / "log"))
    settings = Settings(
        policy="sjf", predictor="declared", max_overtakes=None, length_log=log, tau_floor=None
    )

    async def ask(client: Client, tokens: int, **more: Any) -> int:
        asked = {
            **body("", tokens, **more),
            "model": "llama-3-8b",
            "stream": True,
            "max_tokens": 999,
        }
        said = await client.send("POST", "/v1/completions", json=asked, headers=HEADERS)
        assert said.status == 200, said.text
        assert said.events[-1] == "[DONE]"
        assert "usage" not in said.text
        ended.append(tokens)
        return tokens

    async def run() -> None:
        upstream: Any = SimpleNamespace(url=f"http://127.0.0.1:{port}")
        async with gateway_before(upstream, slots=4, settings=settings) as client:
            assert (await client.send("GET", "/v1/models")).status == 401
            said = await client.send("GET", "/v1/models", headers=HEADERS)
            assert json.loads(said.text)["data"][0]["id"] == "llama-3-8b"
            wrong = await client.send("POST", "/v1/completions", json={"a": 1}, headers=HEADERS)
            assert wrong.status == 400

            await ask(client, 30)  # a server's first answer takes longer to begin
            first = [asyncio.create_task(ask(client, 200)) for _ in range(4)]
            await until(lambda: client.gateway.pool.in_flight == 4)
            asked = [asyncio.create_task(ask(client, (210, 20)[k % 2])) for k in range(20)]
            await until(lambda: client.gateway.dispatcher.queue.waiting == 20, 60)
            waiting = 0.0
            while not all(each.done() for each in asked):
                page = await client.session.get(upstream.url + "/metrics")
                waiting = max(waiting, parse_metrics(await page.text(), upstream.url).waiting)
                await asyncio.sleep(0.1)
            await asyncio.gather(*first, *asked)
            assert waiting == 0
            assert ended[:5] == [30, *[200] * 4]
            assert ended[5:13] == [20] * 8  # the last two have the first of the long beside them

    ended: list[int] = []
    with started(tmp_path, *arguments, *flags) as process:
        wait_for(lambda: "ready at" in (tmp_path / "err").read_text(), process, tmp_path)
        asyncio.run(run())
    answers, _ = read_answers(tmp_path / "log")
    assert sorted(each.output_tokens for each in answers) == sorted(ended)
    assert KEY not in "".join(path.read_text() for path in (tmp_path / "log").glob("*.jsonl"))
