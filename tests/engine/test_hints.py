"""The middleware in vLLM's own server: a policy orders by what it wrote, `/metrics` counts it."""

from __future__ import annotations

import json
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.hints.middleware import PREDICTOR, TOKENIZER, WRITE
from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.serve.listen import free_port
from lengthwise.settings import status_path
from tests.support.commands import DIRECT, started, wait_for

pytestmark = [pytest.mark.engine, pytest.mark.slow]


LONG, SHORT = 300, 5

#: our scheduler, which preempts; and stock vLLM's own order, which lets what runs end
OURS = (
    "vllm_xargs",
    ["--policy", "srpt:max_overtakes=off", "--predictor", "declared"],
    [SHORT] * 8 + [LONG] * 8,
)
STOCK = (
    "priority",
    ["--policy", "fcfs", "--scheduling-policy", "priority"],
    [LONG] * 4 + [SHORT] * 8 + [LONG] * 4,
)


@pytest.mark.parametrize(("write", "flags", "order"), [OURS, STOCK], ids=["ours", "stock"])
def test_answers_come_in_the_order_of_the_hints(
    write: str,
    flags: list[str],
    order: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # What it predicts is the prompt's length: below, long prompts are what has long answers.
    monkeypatch.setenv(PREDICTOR, "prompt-length")
    monkeypatch.setenv(TOKENIZER, "reference")
    monkeypatch.setenv(WRITE, write)
    port, settings = free_port(), tmp_path / "settings.json"
    url = f"http://127.0.0.1:{port}"
    arguments = ["serve", "--emulate", "a100:llama-3-8b", "--settings", str(settings)]
    arguments += ["--port", str(port), *flags, "--max-num-seqs", "4"]
    arguments += ["--middleware", "lengthwise.hints.Middleware"]
    ended: list[int] = []

    def ask(tokens: int) -> None:
        """A chat whose prompt is about as long as its answer, over HTTP."""
        body = {
            "model": "llama-3-8b",
            "messages": [{"role": "user", "content": "word " * tokens}],
            "vllm_xargs": {TRUE_TOKENS: tokens},
        }
        request = urllib.request.Request(
            f"{url}/v1/chat/completions",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with DIRECT.open(request, timeout=200) as response:
            assert json.load(response)["usage"]["completion_tokens"] == tokens
        ended.append(tokens)

    with started(tmp_path, *arguments) as process:
        wait_for(lambda: "ready at" in (tmp_path / "err").read_text(), process, tmp_path)
        with ThreadPoolExecutor(16) as pool:
            jobs = []
            for tokens in (LONG, SHORT):
                jobs += [pool.submit(ask, tokens) for _ in range(8)]
                time.sleep(1.0)  # the long ones hold all slots by then
            for job in jobs:
                job.result()
        assert ended == order
        with DIRECT.open(f"{url}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        (written,) = (
            float(line.split()[-1])
            for line in lines
            if line.startswith('lengthwise_hint_requests_total{outcome="written"}')
        )
        assert written >= 16

        def counters() -> dict[str, int]:
            found: dict[str, int] = json.loads(status_path(settings).read_text())["counters"]
            return found

        wait_for(lambda: counters()["finished"] >= 16, process, tmp_path)
        assert counters()["fallbacks"] == 0
        assert counters()["switched_off"] == 0
