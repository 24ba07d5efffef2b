"""Whose turn it is, as clients and upstreams see it: order, slots, classes, tenants and limits."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from lengthwise.counters import Counters
from lengthwise.gateway.bodies import LARGE, Body, read_body
from lengthwise.gateway.configuration import Opener
from lengthwise.gateway.limits import Limits
from lengthwise.policy import register
from lengthwise.settings import Settings
from tests.support.gateways import Client, body, gateway_before, play, until
from tests.support.small_upstream import OTHERS_THAT_GENERATE, SmallUpstream, small_upstream


async def queued(client: Client, asked: list[tuple[str, int]], **more: Any) -> list[Any]:
    """Requests that come one after the other, while nobody goes."""
    begun = []
    for user, tokens in asked:
        before = client.gateway.dispatcher.queue.arrivals
        begun.append(client.begin(user, tokens, **more))
        await until(lambda before=before: client.gateway.dispatcher.queue.arrivals > before)
    return begun


async def predicted(client: Client, count: int) -> None:
    counters = client.gateway._counters
    await until(lambda: counters.predictions + counters.fallbacks >= count)


@pytest.mark.parametrize(
    ("policy", "order"),
    [
        ("srpt:max_overtakes=off", ["b", "d", "c", "a"]),
        ("sjf:max_overtakes=1", ["b", "a", "d", "c"]),
        ("fcfs", ["a", "b", "c", "d"]),
    ],
)
def test_who_waits_goes_in_the_policys_order(policy: str, order: list[str]) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        first = client.begin("first")
        await until(lambda: upstream.in_flight == 1)
        asked = [("a", 400), ("b", 10), ("c", 90), ("d", 50)]
        come = await queued(client, asked)
        if policy != "fcfs":
            await predicted(client, 4)
        upstream.hold.set()
        said = await asyncio.gather(first, *come)
        assert {each.status for each in said} == {200}
        assert upstream.order == ["first", *order]
        assert upstream.most_in_flight == 1

    play(scene, slots=1, policy=policy)


def test_every_path_that_generates_is_queued() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        queue = client.gateway.dispatcher.queue
        upstream.hold.clear()
        first = client.begin("first")
        await until(lambda: upstream.in_flight == 1)
        asked = [
            asyncio.create_task(client.send("POST", path, json={"user": path, "input": "a"}))
            for path in OTHERS_THAT_GENERATE
        ]
        await until(lambda: queue.waiting == len(asked))
        upstream.hold.set()
        assert {said.status for said in await asyncio.gather(first, *asked)} == {200}
        assert upstream.most_in_flight == 1

    play(scene, slots=1)


def test_a_large_body_is_not_read_by_the_thread_that_serves_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    by: list[tuple[bool, bool]] = []

    def read(data: bytes) -> Body:
        by.append((len(data) > LARGE, threading.current_thread() is threading.main_thread()))
        return read_body(data)

    async def scene(client: Client, upstream: SmallUpstream) -> None:
        assert (await client.ask("small")).status == 200
        assert (await client.ask("large", prompt="a" * LARGE)).status == 200
        assert set(by) == {(False, True), (True, False)}

    monkeypatch.setattr("lengthwise.gateway.bodies.read_body", read)
    play(scene, policy="fcfs")


def test_several_answers_take_several_slots() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        asked = [client.begin(str(number), n=1 + number % 4) for number in range(12)]
        asked.append(client.begin("more than there are", n=9))
        await until(lambda: client.gateway.dispatcher.queue.arrivals == 13)
        upstream.hold.set()
        assert {(await each).status for each in asked} == {200}
        # Nine do not fit into four slots: they have all of them, and nobody is beside them.
        assert upstream.most_in_flight == 9
        assert upstream.begun["more than there are"] == 1

    play(scene, slots=4)


def test_a_class_counts_where_the_operator_says_so() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        first = client.begin("first")
        await until(lambda: upstream.in_flight == 1)

        async def ask(user: str, priority: str) -> Any:
            headers = {"X-Class": priority}
            asked = body(user, priority=int(priority))
            return await client.send("POST", "/v1/completions", json=asked, headers=headers)

        asked = []
        for user, priority in (("low", "5"), ("high", "-1"), ("middle", "0")):
            before = client.gateway.dispatcher.queue.arrivals
            asked.append(asyncio.create_task(ask(user, priority)))
            await until(lambda before=before: client.gateway.dispatcher.queue.arrivals > before)
        upstream.hold.set()
        await asyncio.gather(first, *asked)

    orders = []
    for policy, header in (
        ("fcfs", None),
        ("fcfs", "X-Class"),
        ("fcfs:client_priority=true", None),
    ):

        async def run(policy: str = policy, header: str | None = header) -> None:
            async with (
                small_upstream() as upstream,
                gateway_before(upstream, slots=1, policy=policy, priority_header=header) as client,
            ):
                await scene(client, upstream)
                orders.append(upstream.order[1:])

        asyncio.run(run())
    assert orders == [["low", "high", "middle"], *[["high", "middle", "low"]] * 2]


@pytest.mark.parametrize("header", [None, "X-Tenant"])
def test_nobody_is_served_far_ahead_of_others(header: str | None) -> None:
    """Tenants are API keys, or what the operator's header says; not what a body claims."""

    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        first = client.begin("first", 1)
        await until(lambda: upstream.in_flight == 1)

        async def ask(user: str, tokens: int) -> Any:
            headers = {header or "Authorization": f"Bearer {user[0]}"}
            asked = body(user, tokens, hints={"lengthwise_tenant": user})
            return await client.send("POST", "/v1/completions", json=asked, headers=headers)

        asked = []
        for user, tokens in (("a1", 10), ("a2", 11), ("a3", 12), ("b1", 400), ("b2", 401)):
            before = client.gateway.dispatcher.queue.arrivals
            asked.append(asyncio.create_task(ask(user, tokens)))
            await until(lambda before=before: client.gateway.dispatcher.queue.arrivals > before)
        await predicted(client, 5)
        upstream.hold.set()
        await asyncio.gather(first, *asked)
        assert upstream.order[1:] == ["a1", "b1", "a2", "a3", "b2"]

    policy = "sjf:max_overtakes=off;max_tenant_lead=5"
    play(scene, slots=1, policy=policy, tenant_header=header)


def test_a_limit_is_found_from_what_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lengthwise.gateway.upstream.EVERY_S", 0.02)

    async def scene(client: Client, upstream: SmallUpstream) -> None:
        there = client.gateway.pool.upstreams[0]
        await until(lambda: there.known)
        upstream.hold.clear()
        asked = [client.begin(str(number)) for number in range(40)]
        await until(lambda: upstream.in_flight == 40)
        upstream.waiting = 30.0
        await until(lambda: there.limit <= 10)
        upstream.waiting = 0.0
        upstream.hold.set()
        await asyncio.gather(*asked)

    play(scene, slots=None)


def test_a_policy_that_raises_stays_off_until_the_settings_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where a limit that is found anew twice a second makes the order anew."""
    monkeypatch.setattr("lengthwise.gateway.upstream.EVERY_S", 0.02)

    @register("gateway-divides")
    def divides(request: Any, now: float, parameters: Any) -> float:
        """Raises where somebody has waited since the clock began."""
        return 1.0 if now == 0.0 else 1.0 / (request.expected * 0.0)

    async def scene(client: Client, upstream: SmallUpstream) -> None:
        gateway = client.gateway
        there, counters = gateway.pool.upstreams[0], gateway._counters
        changes = 0
        changed = gateway._set_discipline

        def counted() -> None:
            nonlocal changes
            changes += 1
            changed()

        monkeypatch.setattr(gateway, "_set_discipline", counted)
        await until(lambda: there.known)
        for number in range(5):
            before = changes
            assert (await client.ask(str(number))).status == 200
            assert counters.switched_off == 1
            await until(lambda before=before: changes > before)
        gateway.take_up(gateway.configuration)
        assert (await client.ask("again")).status == 200
        assert counters.switched_off == 2

    play(scene, slots=None, policy="gateway-divides")


def test_a_server_that_does_not_say_what_waits_counts_as_full(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        assert (await client.ask("a")).status == 503
        assert not upstream.begun

    monkeypatch.setattr(SmallUpstream, "_metrics", SmallUpstream._models)
    play(scene, slots=None, limits=Limits(wait_s=0.5))


def test_settings_are_exchanged_while_requests_wait() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        upstream.hold.clear()
        first = client.begin("first")
        await until(lambda: upstream.in_flight == 1)
        come = await queued(client, [("long", 400), ("short", 10)])
        opener = Opener(None, "small", 1, Counters())
        for policy, predictor in (("sjf", "declared"), ("fcfs", "none"), ("sjf", "declared")):
            client.gateway.take_up(opener.open(Settings(policy=policy, predictor=predictor)))
        done = client.gateway._counters.predictions
        await until(lambda: client.gateway._counters.predictions >= max(done, 2))
        upstream.hold.set()
        await asyncio.gather(first, *come)
        assert upstream.order == ["first", "short", "long"]

    play(scene, slots=1, policy="fcfs")
