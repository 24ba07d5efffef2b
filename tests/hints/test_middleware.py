"""Hints in requests' bodies: what is written, what is kept, and that nothing is ever lost."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.hints import Middleware, write_hints
from lengthwise.hints.estimate import MOST_CHARACTERS
from lengthwise.hints.middleware import PREDICTOR, TOKENIZER, WRITE
from lengthwise.hints.question import parse_targets
from tests.support.asgi import CHAT, OURS, Message, Seen, counts, send

DEADLINE = "lengthwise_ttft_deadline_ms"


def passed(body: object, **options: Any) -> tuple[Seen, Any]:
    """What the application behind the middleware sees of a request, and its body as JSON."""
    seen = Seen()
    middleware = Middleware(seen, "prompt-length", tokenizer="reference", patience_s=60, **options)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = asyncio.run(send(middleware, [data[:7], data[7:]]))
    assert b"".join(message.get("body", b"") for message in sent) == b"data: 1\n\ndata: [DONE]\n\n"
    assert seen.headers[b"content-length"] == str(len(seen.body)).encode()
    try:
        return seen, json.loads(seen.body)
    except (ValueError, RecursionError):
        return seen, None


def test_a_prediction_is_written_for_each_reader(tokens: int) -> None:
    with counts(written=1):
        _, body = passed(CHAT)
    assert body == CHAT | {
        "vllm_xargs": {OURS: tokens},
        "nvext": {"agent_hints": {"osl": tokens}},
    }
    _, body = passed(CHAT, write="priority")
    assert body == CHAT | {"priority": tokens}


def test_what_else_is_in_a_request_stays(tokens: int) -> None:
    given = CHAT | {
        "vllm_xargs": {"lengthwise_id": "a"},
        "nvext": {"annotations": ["x"], "agent_hints": {"priority": 3}},
        "priority": 7,
        "temperature": 1e-3,
        "seed": 2**70,
        "user": "Zoë \ud83d",
    }
    _, body = passed(given, write=("vllm_xargs", "nvext", "priority"))
    assert body == given | {
        "vllm_xargs": {"lengthwise_id": "a", OURS: tokens},
        "nvext": {"annotations": ["x"], "agent_hints": {"priority": 3, "osl": tokens}},
    }


@pytest.mark.parametrize(
    ("header", "written"), [(b"250", 250.0), (b"soon", None), (b"-1", None), (b"inf", None)]
)
def test_llm_ds_deadline_is_written_too(header: bytes, written: float | None) -> None:
    async def run(body: Message, **options: Any) -> Any:
        middleware = Middleware(
            seen, "prompt-length", tokenizer="reference", patience_s=60, **options
        )
        headers = [(b"x-llm-d-slo-ttft-ms", header)]
        await send(middleware, [json.dumps(body).encode()], headers=headers)
        return json.loads(seen.body)

    seen = Seen()
    assert asyncio.run(run(CHAT))["vllm_xargs"].get(DEADLINE) == written
    own = CHAT | {"vllm_xargs": {DEADLINE: 100}}
    assert asyncio.run(run(own))["vllm_xargs"][DEADLINE] == 100
    kept = CHAT | {"priority": 1}
    assert asyncio.run(run(kept, write="priority")) == kept


TENANT = "lengthwise_tenant"


@pytest.mark.parametrize("by", ["llm-d", "gateway"])
def test_whose_a_request_is_the_gateway_says(by: str) -> None:
    async def run(body: object) -> Any:
        middleware = Middleware(seen, "prompt-length", tokenizer="reference", patience_s=60)
        await send(middleware, [json.dumps(body).encode()], headers=[(name, b"acme")])
        return json.loads(seen.body)

    name = f"x-{by}-inference-fairness-id".encode()
    seen = Seen()
    assert asyncio.run(run(CHAT))["vllm_xargs"][TENANT] == "acme"
    claimed = CHAT | {"vllm_xargs": {TENANT: "other", OURS: 5}}
    assert asyncio.run(run(claimed))["vllm_xargs"] == {TENANT: "acme", OURS: 5}
    _, body = passed(claimed)  # where no gateway says so, the client does
    assert body["vllm_xargs"][TENANT] == "other"


def test_whose_a_request_is_counts_though_its_length_is_not_predicted() -> None:
    seen = Seen()
    middleware = Middleware(seen, "prompt-length", tokenizer="reference", patience_s=60)
    body = {"prompt": ["a"] * 5000, "vllm_xargs": {TENANT: "other"}}
    headers = [(b"x-gateway-inference-fairness-id", b"acme")]
    with counts(unreadable=1):
        asyncio.run(send(middleware, [json.dumps(body).encode()], headers=headers))
    assert json.loads(seen.body) == body | {"vllm_xargs": {TENANT: "acme"}}


def test_the_prompts_of_a_completion_share_a_mean() -> None:
    _, one = passed({"prompt": [1, 2, 3]})
    _, two = passed({"prompt": [[1, 2, 3], [1, 2, 3, 4, 5]]})
    _, cut = passed({"prompt": [1, 2, 3], "max_tokens": 2})
    assert [each["vllm_xargs"][OURS] for each in (one, two, cut)] == [3, 4, 2]


def test_a_length_that_the_client_names_is_kept_and_passed_on() -> None:
    with counts(declared=1):
        _, body = passed(CHAT | {"vllm_xargs": {OURS: "50"}})
    assert body["vllm_xargs"] == {OURS: "50"}
    assert body["nvext"] == {"agent_hints": {"osl": 50}}
    with counts(declared=1):
        _, body = passed(CHAT | {"nvext": {"agent_hints": {"osl": 60}}}, write="priority")
    assert body["priority"] == 60
    agreed = CHAT | {"vllm_xargs": {OURS: 50}, "nvext": {"agent_hints": {"osl": 50}}}
    with counts(kept=1):
        assert passed(agreed)[1] == agreed


def test_hints_that_contradict_each_other_are_kept_counted_and_said(
    log: pytest.LogCaptureFixture,
) -> None:
    given = CHAT | {"vllm_xargs": {OURS: 50}, "nvext": {"agent_hints": {"osl": 500}}}
    with counts(contradictory=1):
        assert passed(given)[1] == given
    (line,) = (record.getMessage() for record in log.records)
    assert "one names 50 and 500 tokens" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[1]",
        b"[" * 100_000,
        b'{"messages": "\xff"}',
        json.dumps({"model": "m"}).encode(),
        json.dumps({"messages": [{"role": "wizard", "content": "a"}]}).encode(),
        json.dumps(CHAT | {"vllm_xargs": 3}).encode(),
        json.dumps(CHAT | {"vllm_xargs": {OURS: "long"}}).encode(),
        json.dumps(CHAT | {"nvext": {"agent_hints": []}}).encode(),
        json.dumps(CHAT | {"max_tokens": -1}).encode(),
        json.dumps({"prompt": ["a"] * 100_000}).encode(),
        json.dumps({"prompt": "a" * (MOST_CHARACTERS + 1)}).encode(),
    ],
    ids=lambda body: str(body[:30]),
)
def test_what_cannot_be_read_is_passed_on_byte_by_byte(body: bytes) -> None:
    with counts(unreadable=1):
        seen, _ = passed(body)
    assert seen.body == body


def test_a_large_body_is_passed_on_as_it_comes() -> None:
    body = json.dumps(CHAT | {"padding": "x" * 1000}).encode()
    parts = [body[start : start + 100] for start in range(0, len(body), 100)]
    seen = Seen()
    middleware = Middleware(seen, "prompt-length", tokenizer="reference", most_bytes=250)
    with counts(too_large=1):
        asyncio.run(send(middleware, parts))
    assert [message["body"] for message in seen.messages] == parts


def test_a_client_that_goes_is_seen_to_go() -> None:
    seen = Seen()
    middleware = Middleware(seen, "prompt-length", tokenizer="reference")
    with counts():
        asyncio.run(send(middleware, [b'{"mess'], gone=True))
    assert [message["type"] for message in seen.messages] == ["http.request", "http.disconnect"]


@pytest.mark.parametrize(
    "options",
    [{"path": "/v1/models"}, {"headers": [(b"content-encoding", b"gzip")]}],
)
def test_other_requests_are_not_looked_at(options: dict[str, Any]) -> None:
    seen = Seen()
    body = json.dumps(CHAT).encode()
    with counts():
        asyncio.run(send(Middleware(seen, "no/such"), [body], **options))
    assert seen.body == body


def test_a_chunked_body_gets_a_length() -> None:
    async def run() -> None:
        middleware = Middleware(seen, "prompt-length", tokenizer="reference", patience_s=60)
        chunked = (b"transfer-encoding", b"chunked")
        await send(middleware, [json.dumps(CHAT).encode()], headers=[chunked])

    seen = Seen()
    asyncio.run(run())
    assert b"transfer-encoding" not in seen.headers
    assert seen.headers[b"content-length"] == str(len(seen.body)).encode()


def test_one_that_cannot_predict_passes_requests_on(log: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        middleware = Middleware(seen, "no/such", patience_s=60)
        for _ in range(2):
            await send(middleware, [json.dumps(CHAT).encode()])

    seen = Seen()
    with counts(failed=2):
        asyncio.run(run())
    assert json.loads(seen.body) == CHAT
    (complaint,) = log.records
    assert "no/such" in complaint.getMessage()


def test_it_is_configured_by_the_environment(monkeypatch: pytest.MonkeyPatch, tokens: int) -> None:
    async def run() -> None:
        await send(Middleware(seen, patience_s=60), [json.dumps(CHAT).encode()])

    for name, value in {PREDICTOR: "prompt-length", TOKENIZER: "reference", WRITE: "nvext"}.items():
        monkeypatch.setenv(name, value)
    seen = Seen()
    asyncio.run(run())
    assert json.loads(seen.body) == CHAT | {"nvext": {"agent_hints": {"osl": tokens}}}


def test_targets_are_named_as_they_are() -> None:
    assert parse_targets(" nvext , priority") == ("nvext", "priority")
    with pytest.raises(InputError, match="did you mean 'nvext'"):
        parse_targets("nvex")
    with pytest.raises(InputError, match="choose from vllm_xargs"):
        parse_targets(",")


def test_hints_are_whole_tokens_and_at_least_one() -> None:
    assert write_hints({}, 0.2)["vllm_xargs"] == {OURS: 1}
    assert write_hints({}, 12.6, ["priority"]) == {"priority": 13}
