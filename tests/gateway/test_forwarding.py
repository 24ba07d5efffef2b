"""Between a request's turn and its upstream: what is not forwarded waits again, or never counts."""

from __future__ import annotations

import asyncio

from lengthwise.gateway.configuration import Opener
from lengthwise.settings import Settings
from tests.support.gateways import Client, gateway_before, play_whole, until
from tests.support.small_upstream import SmallUpstream, small_upstream


def test_an_upstream_that_is_restarted_loses_nobody_who_waits() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        begun = [client.begin(f"begun-{number}") for number in range(2)]
        await until(lambda: upstream.in_flight == 2)
        waiting = [client.begin(f"waits-{number}") for number in range(8)]
        await until(lambda: client.gateway.dispatcher.queue.waiting == 8)
        await upstream.stop()
        assert {(await each).status for each in begun} == {502}
        await until(lambda: not client.gateway.pool.reachable)
        refused = await client.ask("too early")
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert (await client.send("GET", "/health")).status == 503
        assert (await client.send("GET", "/v1/models")).status == 503
        upstream.hold.set()
        await upstream.start()
        assert {(await each).status for each in waiting} == {200}
        assert (await client.send("GET", "/health")).status == 200
        assert await client.metric("lengthwise_gateway_sent_again_total") >= 1

    play_whole(scene)


def test_a_request_that_was_not_taken_keeps_its_prediction_and_counts_once() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        gateway = client.gateway
        queue, counters, live = gateway.dispatcher.queue, gateway._counters, gateway._lengths._live
        await upstream.stop()  # and nobody has noticed: both have a turn at once
        asked = [client.begin("long", 300), client.begin("short", 30)]
        await until(lambda: queue.waiting == 2 and not gateway.pool.reachable)
        await until(lambda: all(each.looked_at for each in live.values()))
        expected = {each.entry: each.prediction for each in live.values()}
        assert sorted(said.expected for said in expected.values() if said) == [30.0, 300.0]
        for entry in expected:
            assert queue._live.table["predicted"][queue._live.row(entry.id)]
        # As new settings come, what was predicted of old ones is of no use.
        opener = Opener(None, "small", 1, counters)
        gateway.take_up(opener.open(Settings(policy="srpt", predictor="declared")))
        await upstream.start()
        assert {(await each).status for each in asked} == {200}
        assert counters.unpredicted == 0
        assert counters.admissions == len(asked)

    play_whole(scene)


def test_what_one_upstream_does_not_take_goes_to_another() -> None:
    async def run() -> None:
        async with small_upstream() as here, small_upstream() as absent:
            async with gateway_before(here, absent, slots=4) as client:
                await absent.stop()
                said = await asyncio.gather(*(client.ask(str(each)) for each in range(20)))
                assert {each.status for each in said} == {200}
                assert here.begun == {str(each): 1 for each in range(20)}
                assert await client.metric("lengthwise_gateway_sent_again_total") >= 1
            await absent.start()

    asyncio.run(run())


def test_what_is_passed_on_and_not_taken_goes_to_another() -> None:
    async def run() -> None:
        async with small_upstream() as here, small_upstream() as absent:
            async with gateway_before(absent, here) as client:
                await absent.stop()
                data = b"a body of some size " * 50_000
                said = await asyncio.gather(
                    *(client.send("GET", "/v1/models") for _ in range(5)),
                    *(client.send("POST", "/echo", data=data) for _ in range(5)),
                )
                assert {each.status for each in said} == {200}
                assert {each.text for each in said[5:]} == {data.decode()}
                await here.stop()
                assert (await client.send("POST", "/echo", data=data)).status == 503
                assert [each.passing for each in client.gateway.pool.upstreams] == [0, 0]
            await absent.start()
            await here.start()

    asyncio.run(run())


def test_a_client_that_leaves_before_its_request_is_forwarded_is_not_counted() -> None:
    """The upstream takes connections, and never says what makes them https."""

    async def run() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            upstream = SmallUpstream()
            upstream.scheme, upstream.port = "https", server.sockets[0].getsockname()[1]
            async with gateway_before(upstream, slots=1, policy="sjf") as client:
                dispatcher = client.gateway.dispatcher
                leaving = client.begin("leaves", 30)
                await until(lambda: dispatcher.pool.in_flight == 1)
                stays = client.begin("stays", 40)
                await until(lambda: dispatcher.queue.waiting == 1)
                leaving.cancel()
                await until(lambda: dispatcher.queue.waiting == 0)
                assert dispatcher.pool.in_flight == 1
                stays.cancel()
                await until(lambda: dispatcher.pool.in_flight == 0)
                assert await client.outcome("gone") == 2
                assert await client.metric("lengthwise_finished_total") == 2
                assert await client.metric("lengthwise_admissions_total") == 0
                assert dispatcher.queue._tokens == dispatcher.queue._ended == 0

    asyncio.run(run())


def test_admissions_never_fall_and_count_what_was_forwarded() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        seen: list[float] = []

        async def admissions() -> float:
            seen.append(await client.metric("lengthwise_admissions_total"))
            return seen[-1]

        assert (await client.ask("first")).status == 200
        assert await admissions() == 1
        upstream.hold.clear()
        gone = client.begin("goes while it is answered")
        await until(lambda: upstream.in_flight == 1)
        assert await admissions() == 2
        gone.cancel()
        await until(lambda: client.gateway.pool.in_flight == 0)
        upstream.hold.set()
        await upstream.stop()
        waits = client.begin("is not taken at once")
        await until(lambda: not client.gateway.pool.reachable)
        assert await admissions() == 2
        await upstream.start()
        assert (await waits).status == 200
        assert await admissions() == 3
        assert await client.metric("lengthwise_gateway_sent_again_total") >= 1
        assert seen == sorted(seen)

    play_whole(scene)
