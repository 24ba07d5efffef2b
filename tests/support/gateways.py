"""A gateway in this process, before small upstreams, and clients that ask it over real HTTP."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web

from lengthwise.counters import Counters
from lengthwise.gateway.configuration import Opener, Options
from lengthwise.gateway.server import Gateway, runner_of
from lengthwise.predict.load import EXPECTED_TOKENS, TRUE_TOKENS
from lengthwise.settings import Settings, parse_spec
from tests.support.small_upstream import SmallUpstream, small_upstream


class Said(NamedTuple):
    """An answer as its client got it."""

    status: int
    text: str
    headers: dict[str, str]

    @property
    def error(self) -> str:
        return str(json.loads(self.text)["error"]["message"])

    @property
    def events(self) -> list[str]:
        return [part.removeprefix("data: ") for part in self.text.split("\n\n") if part.strip()]


class Client:
    """Asks a gateway."""

    def __init__(self, url: str, session: aiohttp.ClientSession, gateway: Gateway) -> None:
        self.url, self.session, self.gateway = url, session, gateway

    async def send(self, method: str, path: str, **options: Any) -> Said:
        async with self.session.request(method, self.url + path, **options) as response:
            return Said(response.status, await response.text(), dict(response.headers))

    async def ask(self, user: str = "", tokens: int = 3, **more: Any) -> Said:
        """Ask for an answer of some tokens, whose length is declared."""
        return await self.send("POST", "/v1/completions", json=body(user, tokens, **more))

    def begin(self, user: str = "", tokens: int = 3, **more: Any) -> asyncio.Task[Said]:
        return asyncio.create_task(self.ask(user, tokens, **more))

    async def metric(self, line: str) -> float:
        """A value on the page of metrics, 0 where there is none."""
        page = (await self.send("GET", "/metrics")).text
        return sum(float(each.split()[-1]) for each in page.splitlines() if each.startswith(line))

    async def outcome(self, name: str) -> float:
        return await self.metric(f'lengthwise_gateway_requests_total{{outcome="{name}"}}')


def body(user: str = "", tokens: int = 3, **more: Any) -> dict[str, Any]:
    hints = {TRUE_TOKENS: tokens, EXPECTED_TOKENS: tokens, **more.pop("hints", {})}
    return {"prompt": f"Say {tokens} words.", "user": user, "vllm_xargs": hints, **more}


@asynccontextmanager
async def gateway_before(
    *upstreams: SmallUpstream,
    slots: int | None = 2,
    policy: str = "srpt:max_overtakes=off",
    settings: Settings | None = None,
    **options: Any,
) -> AsyncIterator[Client]:
    base = Settings(predictor="declared")
    chosen = Options([each.url for each in upstreams], slots, **options)
    counters = Counters()
    opener = Opener(None, "small", chosen.slots, counters)
    gateway = Gateway(chosen, opener.open(settings or parse_spec(policy, base)), counters)
    runner = runner_of(gateway)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    connector = aiohttp.TCPConnector(limit=0)
    try:
        async with aiohttp.ClientSession(connector=connector) as session:
            yield Client(f"http://127.0.0.1:{port}", session, gateway)
    finally:
        await runner.cleanup()
        await gateway.close()
        opener.close()


async def until(holds: Callable[[], object], within_s: float = 20.0) -> None:
    """Wait until something holds."""
    async with asyncio.timeout(within_s):
        while not holds():
            await asyncio.sleep(0.005)


Scene = Callable[[Client, SmallUpstream], Awaitable[None]]


def play(scene: Scene, **options: Any) -> None:
    """One upstream, a gateway before it, and what happens."""

    async def run() -> None:
        async with small_upstream() as upstream, gateway_before(upstream, **options) as client:
            await scene(client, upstream)

    asyncio.run(run())


def play_whole(scene: Scene, **options: Any) -> None:
    """The same; then nothing began twice, nothing is left, and no fault was the gateway's own."""

    async def whole(client: Client, upstream: SmallUpstream) -> None:
        await scene(client, upstream)
        assert set(upstream.begun.values()) <= {1}, upstream.begun
        pool = client.gateway.pool
        await until(lambda: pool.in_flight == 0)
        assert client.gateway.dispatcher.queue.waiting == 0
        assert client.gateway.room.requests == client.gateway.room.bytes == 0
        assert await client.outcome("defect") == 0

    play(whole, **options)
