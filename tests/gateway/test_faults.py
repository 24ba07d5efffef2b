"""Everything that can go wrong around a gateway, over real HTTP.

Each request ends once or gets one clear error, and nothing that has begun is sent twice: the
upstream counts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lengthwise.gateway.limits import Limits
from lengthwise.gateway.relay import Patience
from tests.support.gateways import Client, body, gateway_before, play_whole, until
from tests.support.small_upstream import SmallUpstream


@asynccontextmanager
async def gateway_before_bytes(
    answer: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    **options: Any,
) -> AsyncIterator[Client]:
    """A gateway whose upstream writes what it likes to a connection."""
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        upstream = SmallUpstream()
        upstream.port = server.sockets[0].getsockname()[1]
        async with gateway_before(upstream, **options) as client:
            yield client


@pytest.mark.parametrize("status", [400, 429, 500, 503])
def test_an_upstreams_error_is_passed_on_as_it_is(status: int) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        said = await client.ask("a", hints={"fault": f"status:{status}"})
        assert (said.status, said.error) == (status, "the upstream's own words")
        assert said.headers["Retry-After"] == "7"
        assert await client.outcome("answered") == 1

    play_whole(scene)


def test_an_upstream_that_breaks_off_before_it_answers_is_not_asked_again() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        said = await client.ask("a", hints={"fault": "reset"})
        assert said.status == 502
        assert "not sent again" in said.error
        assert upstream.begun["a"] == 1
        assert (await client.ask("b")).status == 200
        assert await client.outcome("failed") == 1

    play_whole(scene)


@pytest.mark.parametrize("method", ["DELETE", "PUT", "POST", "PATCH"])
def test_what_changes_something_is_sent_once_also_over_a_kept_connection(method: str) -> None:
    seen: list[str] = []

    async def run() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            while head := await reader.readuntil(b"\r\n\r\n"):
                seen.append(head.split()[0].decode())
                if seen[-1] != "GET":
                    break
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
                await writer.drain()
            writer.close()

        async with gateway_before_bytes(answer) as client:
            assert (await client.send("GET", "/v1/files")).status == 200
            said = await client.send(method, "/v1/files/a")
            assert said.status == 502
            assert "not sent again" in said.error

    asyncio.run(run())
    assert seen == ["GET", method]


def test_a_stream_that_breaks_off_ends_with_one_error() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        said = await client.ask("a", 10, stream=True, hints={"fault": "break"})
        events = said.events
        assert said.status == 200
        assert "broke off" in json.loads(events[-1])["error"]["message"]
        assert ["error" in event for event in events].count(True) == 1
        assert "[DONE]" not in said.text
        assert await client.outcome("broken") == 1

    play_whole(scene)


@pytest.mark.parametrize("policy", ["srpt", "fcfs", "srpt:max_lead=2"])
def test_an_answer_that_says_it_is_longer_than_any_spoils_nothing(policy: str) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        for user, said_tokens in (("a", 10**30), ("b", 2**63 - 1), ("c", 3)):
            said = await client.ask(user, hints={"said_tokens": said_tokens})
            assert said.status == 200
        assert await client.outcome("answered") == 3

    play_whole(scene, policy=policy)


def test_an_upstream_that_falls_silent_is_given_up() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        said = await client.ask("a", 10, stream=True, hints={"fault": "stall"})
        assert "said nothing" in json.loads(said.events[-1])["error"]["message"]
        upstream.hold.clear()
        said = await client.ask("b")
        assert said.status == 504
        await until(lambda: upstream.gone == {"a", "b"})
        upstream.hold.set()
        assert await client.outcome("broken") == await client.outcome("silent") == 1

    play_whole(scene, patience=Patience(upstream_s=0.3))


def test_a_body_that_is_no_stream_breaks_off_where_the_upstreams_did() -> None:
    """Of a plain answer with a length, a client sees that something is missing."""

    async def run() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            head = (
                b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
            )
            writer.write(head + b"{")
            await writer.drain()
            writer.close()

        async with gateway_before_bytes(answer) as client:
            with pytest.raises(aiohttp.ClientError):
                await client.ask()
            assert await client.outcome("broken") == 1

    asyncio.run(run())


def test_a_client_that_takes_nothing_is_cut_off_and_the_upstream_told() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        host, port = client.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        asked = json.dumps(body("slow", 10_000_000, stream=True)).encode()
        head = f"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: {len(asked)}\r\n\r\n"
        writer.write(head.encode() + asked)
        await writer.drain()
        assert (await client.ask("quick")).status == 200
        await until(lambda: upstream.gone == {"slow"}, within_s=60)
        assert await client.outcome("slow") == 1
        writer.close()

    play_whole(scene, patience=Patience(client_s=0.5))


def test_a_client_that_takes_all_but_the_end_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is less than aiohttp waits for in a write is waited for at the end of the answer."""

    async def late(response: web.StreamResponse, data: bytes = b"") -> None:
        await asyncio.sleep(5.0)

    async def run() -> None:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nthe whole answer")
            await writer.drain()
            writer.close()

        async with gateway_before_bytes(answer, patience=Patience(client_s=0.1)) as client:
            with monkeypatch.context() as patch:
                patch.setattr(web.StreamResponse, "write_eof", late)
                with pytest.raises(aiohttp.ClientError):
                    await client.ask()
            assert client.gateway.pool.in_flight == 0
            assert await client.outcome("slow") == 1

    asyncio.run(run())


def test_a_client_that_stops_sending_is_cut_off() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        host, port = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()
        assert b" 408 " in await reader.readline()
        writer.close()
        assert not upstream.begun

    play_whole(scene, patience=Patience(client_s=0.3))


def test_a_client_that_drips_does_not_hold_its_place_for_long() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        host, port = client.url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 9999\r\n\r\n")
        answer = bytearray()

        async def read() -> None:
            # What is written once the gateway has hung up resets the connection.
            with contextlib.suppress(ConnectionResetError):
                while part := await reader.read(2**16):
                    answer.extend(part)

        reading = asyncio.create_task(read())
        while not reading.done():
            writer.write(b" ")
            await asyncio.sleep(0.05)
        assert b" 408 " in answer
        assert b"was not whole after" in answer
        writer.close()
        assert client.gateway.room.requests == 0
        assert not upstream.begun

    play_whole(scene, patience=Patience(client_s=0.4))


def test_clients_that_go_are_forgotten_and_the_others_answered() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        asked = [
            client.begin(str(number), 3, stream=True, hints={"pause_s": 0.01})
            for number in range(60)
        ]
        upstream.hold.clear()
        await until(lambda: sum(upstream.begun.values()) == 4)
        await until(lambda: client.gateway.dispatcher.queue.waiting == 56)
        running = [int(user) for user in upstream.order]
        going = {running[0], *list(set(range(60)) - set(running))[::11]}
        for number in going:
            asked[number].cancel()
        # Those who waited are gone, and one has gone in the place of the one that ran.
        await until(lambda: client.gateway.dispatcher.queue.waiting == 56 - len(going))
        await until(lambda: upstream.gone == {str(running[0])})
        upstream.hold.set()
        ended = await asyncio.gather(*asked, return_exceptions=True)
        for number, said in enumerate(ended):
            if number in going:
                assert isinstance(said, asyncio.CancelledError)
            else:
                assert not isinstance(said, BaseException)
                assert said.events[-1] == "[DONE]"
        assert upstream.gone == {str(running[0])}
        assert sum(upstream.begun.values()) == 60 - (len(going) - 1)
        assert await client.outcome("gone") == len(going)
        assert upstream.most_in_flight <= 4

    play_whole(scene, slots=4)


def test_a_request_that_waits_too_long_gets_503() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        running = client.begin("a")
        await until(lambda: upstream.in_flight == 1)
        said = await client.ask("b")
        assert said.status == 503
        assert "without a turn" in said.error
        assert int(said.headers["Retry-After"]) >= 1
        upstream.hold.set()
        assert (await running).status == 200
        assert upstream.begun == {"a": 1}
        assert await client.outcome("timed_out") == 1

    play_whole(scene, slots=1, limits=Limits(wait_s=0.2))


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        (Limits(requests=2), "2 requests wait already"),
        (Limits(bytes=600), "bytes are kept already"),
        (Limits(per_key=2), "of this API key"),
    ],
)
def test_a_full_queue_refuses_with_429(limits: Limits, words: str) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        running = client.begin("a")
        await until(lambda: upstream.in_flight == 1)
        waiting: list[Any] = []
        while (said := client.begin(str(len(waiting)))) and len(waiting) < 20:
            waiting.append(said)
            await asyncio.sleep(0.02)
        refused = [each for each in waiting if each.done()]
        assert len(waiting) - len(refused) in (2, 3, 4, 5)
        for each in refused:
            assert each.result().status == 429
            assert words in each.result().error
            assert int(each.result().headers["Retry-After"]) >= 1
        if limits.per_key:
            other = asyncio.create_task(
                client.send(
                    "POST",
                    "/v1/completions",
                    json=body("other"),
                    headers={"Authorization": "Bearer another"},
                )
            )
            await asyncio.sleep(0.05)
            assert not other.done()
            waiting.append(other)
        upstream.hold.set()
        statuses = [(await each).status for each in (running, said, *waiting)]
        assert set(statuses) == {200, 429}

    play_whole(scene, slots=1, limits=limits)


def test_a_body_that_is_too_large_is_refused() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        said = await client.ask("a", prompt="x" * 2000)
        assert said.status == 413
        assert not upstream.begun

    play_whole(scene, limits=Limits(body_bytes=1000))


def test_the_end_refuses_what_waits_and_cuts_what_runs_with_one_error() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        gateway = client.gateway
        running = client.begin("streams", 1000, stream=True, hints={"pause_s": 0.01})
        await until(lambda: upstream.in_flight == 1)
        upstream.hold.clear()
        silent = client.begin("silent")
        await until(lambda: upstream.in_flight == 2)
        waiting = [client.begin(f"waits-{number}") for number in range(5)]
        await until(lambda: gateway.dispatcher.queue.waiting == 5)
        gateway.draining = True
        new = await client.ask("new")
        assert (new.status, new.headers["Retry-After"]) == (503, "1")
        assert (await client.send("GET", "/health")).status == 503
        await gateway.cut()
        for each in (*waiting, silent):
            assert ((await each).status, (await each).headers["Retry-After"]) == (503, "1")
            assert "shut" in (await each).error
        assert "shut down" in json.loads((await running).events[-1])["error"]["message"]
        assert gateway.was_cut == 2
        assert await client.outcome("cut") == 2
        assert await client.outcome("shut_down") == 6
        await until(lambda: upstream.gone == {"streams", "silent"})

    play_whole(scene)
