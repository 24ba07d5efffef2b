"""A small server with OpenAI's API, for faults: it counts what began, and breaks when told to.

A request says in `vllm_xargs` how its answer goes:

lengthwise_true_tokens   how many tokens it has, each an event of its own
pause_s                  between two of them
fault                    "status:503", "reset" (before the head), "break" (half-way),
                         "stall" (the same, but it only falls silent)
said_tokens              how many its usage says that it has, where that is not true
"""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from lengthwise.predict.load import TRUE_TOKENS

#: paths of vLLM's whose answers are generated as well, which differ in form and not here
OTHERS_THAT_GENERATE = (
    "/v1/chat/completions/batch",
    "/v1/responses",
    "/v1/messages",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
    "/cohere/v2/chat",
    "/inference/v1/generate",
    "/invocations",
)


class SmallUpstream:
    """The server.

    Attributes:
        begun: requests that began, by their `user`.
        order: the `user` of each, as they came.
        in_flight: how many are under way.
        most_in_flight: how many were at the most.
        gone: whose connection was closed before they ended.
        bodies: what was sent, as bytes.
        headers: of the last request.
    """

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()
        self.order: list[str] = []
        self.in_flight = 0
        self.most_in_flight = 0
        self.gone: set[str] = set()
        self.bodies: list[bytes] = []
        self.headers: dict[str, str] = {}
        self.waiting = 0.0
        self.scheme, self.port = "http", 0
        self.hold = asyncio.Event()
        self.hold.set()
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def start(self, ssl: Any = None) -> None:
        """Listen: at the port of last time, if there was one."""
        app = web.Application(client_max_size=1 << 30)
        app.router.add_post("/v1/chat/completions", self._answer)
        for path in ("/v1/completions", *OTHERS_THAT_GENERATE):
            app.router.add_post(path, self._answer)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/metrics", self._metrics)
        app.router.add_post("/echo", self._echo)
        app.router.add_route("*", "/v1/moved", self._moved)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.05)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=ssl)
        await site.start()
        assert site._server is not None
        self.port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]

    async def stop(self) -> None:
        """Stop listening, and break off whatever is under way."""
        assert self._runner is not None
        await self._runner.cleanup()

    async def _models(self, request: web.Request) -> web.Response:
        self.headers = dict(request.headers)
        return web.json_response({"data": [{"id": "small"}]}, headers={"X-Own": "kept"})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=f'vllm:num_requests_waiting{{engine="0"}} {self.waiting}\n')

    async def _echo(self, request: web.Request) -> web.Response:
        return web.Response(body=await request.read(), content_type="application/x-own")

    async def _moved(self, request: web.Request) -> web.Response:
        """Redirects, as a server does that names itself by the `Host` it was called with."""
        to = f"http://{request.host}{request.query['to']}"
        return web.Response(status=307, headers={"Location": to})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        data = await request.read()
        self.bodies.append(data)
        self.headers = dict(request.headers)
        body = json.loads(data)
        user = body.get("user", "")
        self.begun[user] += 1
        self.order.append(user)
        slots = body.get("n", 1)
        self.in_flight += slots
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        try:
            return await self._begin(request, body)
        except (asyncio.CancelledError, ConnectionResetError):
            self.gone.add(user)
            raise
        finally:
            self.in_flight -= slots

    async def _begin(self, request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
        hints = body.get("vllm_xargs", {})
        fault = str(hints.get("fault", ""))
        tokens, pause_s = int(hints.get(TRUE_TOKENS, 3)), float(hints.get("pause_s", 0.0))
        await self.hold.wait()
        if fault.startswith("status:"):
            status = int(fault.partition(":")[2])
            said = {"error": {"message": "the upstream's own words", "code": status}}
            return web.json_response(said, status=status, headers={"Retry-After": "7"})
        if fault == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        said = hints.get("said_tokens", tokens * body.get("n", 1))
        usage = {"prompt_tokens": 5, "completion_tokens": said}
        if not body.get("stream"):
            await asyncio.sleep(tokens * pause_s)
            choice = {"index": 0, "text": "a " * tokens, "finish_reason": "stop"}
            return web.json_response({"choices": [choice], "usage": usage})
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        asked = body.get("stream_options", {}).get("include_usage")
        for number in range(tokens):
            if fault and number >= tokens // 2:
                if fault == "stall":
                    await asyncio.sleep(3600)
                assert request.transport is not None
                request.transport.abort()
                return response
            reason = "stop" if number + 1 == tokens else None
            event = {"choices": [{"index": 0, "text": f"{number} ", "finish_reason": reason}]}
            await response.write(_event(event | ({"usage": None} if asked else {})))
            await asyncio.sleep(pause_s)
        if asked:
            await response.write(_event({"choices": [], "usage": usage}))
        await response.write(b"data: [DONE]\n\n")
        return response


def _event(values: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(values, separators=(",", ":")).encode() + b"\n\n"


@asynccontextmanager
async def small_upstream(ssl: Any = None) -> AsyncIterator[SmallUpstream]:
    upstream = SmallUpstream()
    await upstream.start(ssl)
    try:
        yield upstream
    finally:
        await upstream.stop()
