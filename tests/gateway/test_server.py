"""A gateway as its clients and its upstreams see it: order, slots, what passes, what is learnt."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import ssl
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lengthwise.counters import Counters
from lengthwise.gateway.configuration import Opener
from lengthwise.gateway.limits import Limits
from lengthwise.policy import register
from lengthwise.settings import LengthLogSettings, Settings
from lengthwise.workload.length_log import read_answers
from tests.support.gateways import Client, body, gateway_before, play, until
from tests.support.small_upstream import SmallUpstream, small_upstream

KEY = "sk-my-heart-is-in-the-highlands"


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


def test_a_body_of_more_prompts_than_are_predicted_is_served_as_it_is() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        asked = json.dumps(body("many", prompt=["a"] * 100_000)).encode()
        assert (await client.send("POST", "/v1/completions", data=asked)).status == 200
        assert upstream.bodies == [asked]

    play(scene)


def test_everything_passes_as_it_is() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        headers = {"Authorization": f"Bearer {KEY}", "X-Mine": "a", "Connection": "X-Mine"}
        said = await client.send("GET", "/v1/models?a=%2F&b", headers=headers)
        assert json.loads(said.text) == {"data": [{"id": "small"}]}
        assert said.headers["X-Own"] == "kept"
        assert upstream.headers["Authorization"] == f"Bearer {KEY}"
        assert "X-Mine" not in upstream.headers
        assert upstream.headers["Host"] == upstream.url.removeprefix("http://")
        data = bytes(range(256)) * 8000
        async with client.session.post(client.url + "/echo", data=data) as response:
            assert await response.read() == data
            assert response.content_type == "application/x-own"
        assert (await client.send("GET", "/nowhere")).status == 404
        packed = gzip.compress(json.dumps(body("packed")).encode())
        odd = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
        assert (
            await client.send("POST", "/v1/completions", data=packed, headers=odd)
        ).status == 200
        exact = json.dumps(body("exact", seed=2**70), indent=3).encode()
        await client.send("POST", "/v1/completions", data=exact)
        assert upstream.bodies[-1] == exact
        assert (await client.send("POST", "/v1/completions", data=b"{")).status == 500
        assert (await client.send("GET", "/ws", headers={"Upgrade": "websocket"})).status == 501

    play(scene)


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


def learning(folder: Path) -> Settings:
    return Settings(
        policy="sjf", predictor="declared", length_log=LengthLogSettings(folder=str(folder))
    )


def test_lengths_are_learnt_from_what_passes_and_nobody_notices(tmp_path: Path) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        plain = await client.ask("whole", 6)
        asked = await client.ask("asked", 5, stream=True, stream_options={"include_usage": True})
        quiet = await client.ask("quiet", 4, stream=True)
        await client.ask("many", 4, n=2)
        await client.ask("failed", 9, hints={"fault": "status:500"})
        lengths = client.gateway._lengths
        await until(lambda: not lengths._pending and lengths._worker.done())
        assert json.loads(plain.text)["usage"]["completion_tokens"] == 6
        assert "Content-Length" in plain.headers
        assert json.loads(asked.events[-2])["usage"]["completion_tokens"] == 5
        assert "usage" not in quiet.text
        assert [json.loads(each)["choices"][0]["text"] for each in quiet.events[:-1]] == [
            f"{number} " for number in range(4)
        ]
        sent = json.loads(upstream.bodies[2])
        assert sent.pop("stream_options") == {"include_usage": True}
        assert sent == body("quiet", 4, stream=True)

    play(scene, settings=learning(tmp_path / "log"))
    answers, reader = read_answers(tmp_path / "log")
    assert reader.damaged == 0
    assert [each.output_tokens for each in answers] == [6, 5, 4]
    assert {each.finished for each in answers} == {"stop"}
    assert [each.values["expected_tokens"] for each in answers] == [6.0, 5.0, 4.0]
    assert {each.values["predictor"] for each in answers} == {"declared"}
    assert all(each.features.size for each in answers)
    assert all(each.values["queue_s"] >= 0 for each in answers)
    assert KEY not in "".join(path.read_text() for path in tmp_path.rglob("*.jsonl"))


def test_without_a_log_nothing_is_asked_for() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        asked = json.dumps(body("a", 4, stream=True)).encode()
        await client.send("POST", "/v1/completions", data=asked)
        assert upstream.bodies == [asked]

    play(scene)


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


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("tls")
    key, own = folder / "key.pem", folder / "cert.pem"
    command = f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -out {own}"
    names = ["-keyout", str(key), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return own, key


def test_an_https_upstream_is_checked(certificate: tuple[Path, Path]) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    trusted = ssl.create_default_context(cafile=certificate[0])

    async def run() -> None:
        async with small_upstream(context) as upstream:
            upstream.scheme = "https"
            async with gateway_before(upstream, upstream_ssl=trusted) as client:
                assert (await client.ask("a")).status == 200
            async with gateway_before(upstream, limits=Limits(wait_s=1.0)) as client:
                assert (await client.ask("b")).status == 503
            assert upstream.begun == {"a": 1}

    asyncio.run(run())


def test_an_https_upstream_that_is_not_trusted_cannot_be_reached_and_why_is_said(
    certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lengthwise.gateway.reachability._EVERY_S", 0.02)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(*certificate)
    trusted = ssl.create_default_context(cafile=certificate[0])

    async def run() -> None:
        async with small_upstream(context) as upstream:
            upstream.scheme = "https"
            async with gateway_before(upstream, limits=Limits(wait_s=60.0)) as client:
                there = client.gateway.pool.upstreams[0]
                assert await client.gateway.reachability.look() == [there]
                assert "its certificate is not trusted" in there.refusal
                for _ in range(10):
                    said = await client.ask("a")
                    assert (said.status, said.headers["Retry-After"]) == (503, "1")
                    assert there.refusal in said.error
                    assert upstream.url not in said.error
                    await asyncio.sleep(0.05)
                assert not upstream.begun
            async with gateway_before(upstream, upstream_ssl=trusted) as client:
                there = client.gateway.pool.upstreams[0]
                assert await client.gateway.reachability.look() == []
                await upstream.stop()
                assert await client.gateway.reachability.look() == [there]
                assert there.refusal == "Connection refused"
                await upstream.start(context)
                await until(lambda: there.reachable)
                assert (await client.ask("b")).status == 200

    asyncio.run(run())


def test_no_key_and_no_prompt_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        headers = {"Authorization": f"Bearer {KEY}"}
        for fault in ("reset", "status:500", "break", ""):
            asked = body("a", prompt=f"{KEY} prompt", stream=True, hints={"fault": fault})
            await client.send("POST", "/v1/completions", json=asked, headers=headers)
        await upstream.stop()
        asked = body("b", prompt=KEY)
        await client.send("POST", "/v1/completions", json=asked, headers=headers)
        assert KEY not in (await client.send("GET", "/metrics")).text
        await upstream.start()

    with caplog.at_level(logging.DEBUG):
        play(scene, limits=Limits(wait_s=0.3))
    assert KEY not in caplog.text
