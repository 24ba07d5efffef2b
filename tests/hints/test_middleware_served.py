"""The middleware of hints in front of a real server, and with a predict-server that it asks."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lengthwise.hints import Middleware
from lengthwise.hints.estimate import PromptPredictor
from lengthwise.hints.middleware import PREDICTOR
from lengthwise.hints.service import make_app
from tests.support.asgi import CHAT, OURS, Seen, counts, send


def test_a_predict_server_is_asked_for_what_it_needs(tokens: int) -> None:
    async def run() -> None:
        app = make_app(PromptPredictor("prompt-length", "reference"), 1_000_000)
        async with TestServer(app) as server:
            middleware = Middleware(seen, str(server.make_url("/")), patience_s=60)
            with counts(written=1):
                await send(middleware, [json.dumps(CHAT).encode()])
            assert json.loads(seen.body)["vllm_xargs"] == {OURS: tokens}
            with counts(unreadable=1):
                await send(middleware, [b'{"messages": []}'])
            await (await middleware._ready()).close()

    seen = Seen()
    asyncio.run(run())


def test_a_predict_server_that_fails_is_left_alone_for_a_while(
    log: pytest.LogCaptureFixture,
) -> None:
    calls = 0

    async def hang(request: web.Request) -> web.Response:
        nonlocal calls
        calls += 1
        await asyncio.sleep(10 if calls == 1 else 0)
        return web.Response(status=500 if calls == 2 else 200, text='{"predictions": []}')

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/predict", hang)
        async with TestServer(app) as server:
            url = str(server.make_url("/"))
            middleware = Middleware(seen, url, patience_s=0.2)
            body = [json.dumps(CHAT).encode()]
            with counts(late=1, failed=5):
                for _ in range(6):
                    await send(middleware, body)
            assert calls == 1
            estimator: Any = await middleware._ready()
            for status in (500, 200):  # and one that answers with something else
                estimator._not_before = 0.0
                with counts(failed=1):
                    await send(middleware, body)
                assert calls == (2 if status == 500 else 3)
            await estimator.close()
        with counts(failed=1):  # nobody listens any longer
            await send(Middleware(seen, url, patience_s=60), body)
        assert json.loads(seen.body) == CHAT

    seen = Seen()
    asyncio.run(run())
    assert ["within 0.2 s" in each for each in log.messages] == [True, False]


@contextmanager
def served(app: Any) -> Iterator[int]:
    """An ASGI application behind uvicorn: the port."""
    uvicorn = pytest.importorskip("uvicorn", reason="uvicorn, which vLLM brings, is not installed")
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_over_real_http_with_and_without_a_length(tokens: int) -> None:
    class Echo(Seen):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await super().__call__(scope, receive, send)
                return
            for kind in ("startup", "shutdown"):
                assert (await receive())["type"] == f"lifespan.{kind}"
                await send({"type": f"lifespan.{kind}.complete"})

    seen = Echo()
    data = json.dumps(CHAT).encode()
    with served(Middleware(seen, "prompt-length", tokenizer="reference")) as port:
        for body in (data, (data[start : start + 20] for start in range(0, len(data), 20))):
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            client.request(
                "POST", "/v1/chat/completions", body, encode_chunked=not isinstance(body, bytes)
            )
            assert client.getresponse().read() == b"data: 1\n\ndata: [DONE]\n\n"
            client.close()
            assert json.loads(seen.body)["vllm_xargs"] == {OURS: tokens}
            assert seen.headers[b"content-length"] == str(len(seen.body)).encode()


@pytest.mark.parametrize(
    ("name", "words"), [("", f"set {PREDICTOR}"), ("no/such", "no/such does not exist")]
)
def test_a_server_does_not_start_with_a_predictor_that_is_not_there(name: str, words: str) -> None:
    pytest.importorskip("uvicorn", reason="uvicorn, which vLLM brings, is not installed")
    code = (
        "import uvicorn\nfrom lengthwise.hints import Middleware\n"
        f"uvicorn.run(Middleware(None, {name!r}), port=0)"
    )
    environment = {key: value for key, value in os.environ.items() if key != PREDICTOR}
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env=environment
    )
    assert ended.returncode != 0
    assert words in ended.stderr
    assert "Traceback" not in ended.stderr
