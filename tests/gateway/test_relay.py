"""What passes: requests and answers as they are, what is learnt of them, and no key into a log."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import pytest

from lengthwise.gateway.limits import Limits
from lengthwise.gateway.relay import through_gateway
from lengthwise.settings import LengthLogSettings, Settings
from lengthwise.workload.length_log import read_answers
from tests.support.gateways import Client, body, play, until
from tests.support.small_upstream import SmallUpstream

KEY = "sk-my-heart-is-in-the-highlands"


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


def test_a_redirection_does_not_lead_past_the_queue() -> None:
    async def scene(client: Client, upstream: SmallUpstream) -> None:
        asked, path = body("moved"), "/v1/moved?to=/v1/completions"
        said = await client.send("POST", path, json=asked, allow_redirects=False)
        assert (said.status, said.headers["Location"]) == (307, "/v1/completions")
        assert (await client.send("POST", path, json=asked)).status == 200
        assert await client.outcome("answered") == 1

    play(scene)


@pytest.mark.parametrize(
    ("address", "upstream", "meant"),
    [
        ("http://a:1/v1/x?b=%2F#c", "http://a:1", "/v1/x?b=%2F#c"),
        ("http://A:1", "http://a:1", "/"),
        ("http://a/v1/x", "https://a:443", "/v1/x"),  # behind whoever ends its TLS
        ("http://a/openai/v1/x", "http://a/openai", "/v1/x"),
        ("/openai/v1/x", "http://a/openai", "/v1/x"),
        ("/v1/x", "http://a", "/v1/x"),
        ("http://a//b/x", "http://a", "/b/x"),  # no name of a host
        ("x", "http://a", "x"),
        ("", "http://a", ""),
        ("http://a/openaix/x", "http://a/openai", "http://a/openaix/x"),
        ("http://a:2/x", "http://a:1", "http://a:2/x"),
        ("http://b/x", "http://a", "http://b/x"),
        ("http://a:x/", "http://a", "http://a:x/"),
        ("mailto:a", "http://a", "mailto:a"),
    ],
)
def test_an_address_within_the_upstream_is_one_at_the_gateway(
    address: str, upstream: str, meant: str
) -> None:
    assert through_gateway(address, upstream) == meant


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
