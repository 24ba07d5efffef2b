"""The client against a real HTTP server: times kept, tokens counted, no failure lost."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.compare.client import (
    Answer,
    Replay,
    ReplayJob,
    ReplayRequest,
    StreamReader,
    replay,
    request_body,
)
from lengthwise.compare.client_process import ClientProcess
from lengthwise.compare.specs import Turns

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload, separators=(",", ":")).encode() + b"\n\n"


def chunk(token_ids: list[int], text: str = "x", finish: str | None = None, **more: Any) -> bytes:
    choice = {"index": 0, "text": text, "finish_reason": finish, "token_ids": token_ids, **more}
    return event({"choices": [choice]})


def stream(tokens: int) -> list[bytes]:
    """What vLLM sends for an answer of so many tokens."""
    first = chunk([7], prompt_token_ids=[1, 2, 3])
    middle = [chunk([7]) for _ in range(tokens - 2)]
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": tokens}}
    return [first, *middle, chunk([7], finish="length"), event(usage), b"data: [DONE]\n\n"]


async def on_server(handler: Handler, run: Callable[[str], Awaitable[Replay]]) -> Replay:
    application = web.Application()
    application.router.add_post("/v1/completions", handler)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        return await run(site.name)
    finally:
        await runner.cleanup()


async def answer_all(request: web.Request) -> web.StreamResponse:
    body = await request.json()
    response = web.StreamResponse()
    await response.prepare(request)
    for part in stream(body["max_tokens"]):
        await response.write(part)
        await asyncio.sleep(0.001)
    return response


def job(url: str, count: int, **options: Any) -> ReplayJob:
    requests = [ReplayRequest(10 + number, [1, 2, 3], 4 + number) for number in range(count)]
    return ReplayJob(url, "m", requests, **{"scheduled_s": [0.0] * count, **options})


def run(handler: Handler, count: int, **options: Any) -> Replay:
    def run_on(url: str) -> Awaitable[Replay]:
        return replay(job(url, count, **options), lambda answered, failed: None)

    return asyncio.run(on_server(handler, run_on))


def test_every_token_is_counted_and_timed() -> None:
    result = run(answer_all, 3, scheduled_s=[0.0, 0.1, 0.2])
    for number, answer in enumerate(result.answers):
        assert answer.request == 10 + number
        assert answer.error is None
        assert answer.finish_reason == "length"
        assert answer.output_tokens == len(answer.token_times) == 4 + number
        assert answer.prompt_tokens == 3
        assert answer.scheduled_s <= answer.sent_s <= answer.first_token_s < answer.finish_s
        assert list(answer.token_times) == sorted(answer.token_times)


def test_a_closed_loop_keeps_its_number_of_clients() -> None:
    under_way = most = 0

    async def handler(request: web.Request) -> web.StreamResponse:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        try:
            return await answer_all(request)
        finally:
            under_way -= 1

    result = run(handler, 9, scheduled_s=None, clients=3)
    assert most == 3
    assert [answer.error for answer in result.answers] == [None] * 9


def test_later_turns_come_after_the_answers_before_them() -> None:
    """Two sessions, and one request of none."""
    turns = Turns(after=[-1, -1, 0, 1, 2, -1], delay_s=[0.0, 0.0, 0.05, 0.0, 0.1, 0.0])
    answers = run(answer_all, 6, scheduled_s=[0.0, 0.02, 9.0, 9.0, 9.0, 0.04], turns=turns).answers
    assert all(answer.error is None for answer in answers)
    for place, before in enumerate(turns.after):
        if before >= 0:
            least_s = answers[before].finish_s + turns.delay_s[place]
            assert answers[place].sent_s >= least_s
            assert answers[place].scheduled_s >= least_s
    assert answers[4].finish_s < 9.0


def test_failures_are_recorded_and_others_go_on() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        number = int(body["vllm_xargs"]["lengthwise_id"])
        if number == 10:
            error = {"error": {"message": "too\nlong", "code": 400}}
            return web.json_response(error, status=400)
        if number == 11:
            return web.Response(status=500, text="broken")
        response = web.StreamResponse()
        await response.prepare(request)
        if number == 12:
            await response.write(chunk([7]) + event({"error": {"message": "engine died"}}))
        elif number == 13:
            await response.write(chunk([7]))
        elif number == 14:
            await response.write(b"".join(stream(3)))
        elif number == 15:
            await response.write(b'data: {"finish_reason":"stop" broken\n\n')
        elif number == 16:
            assert request.transport is not None
            request.transport.close()
        else:
            await response.write(b"".join(stream(body["max_tokens"])))
        return response

    errors = [answer.error for answer in run(handler, 8).answers]
    assert errors[0] == "HTTP 400: too long"
    assert errors[1] == "HTTP 500: broken"
    assert errors[2] == "engine died"
    assert errors[3] == "the stream ended early"
    assert errors[4] == "answered with 3 tokens, 8 were asked for"
    assert errors[5] is not None
    assert errors[6] is not None
    assert errors[7] is None


def test_a_server_that_is_not_there_fails_every_request() -> None:
    result = asyncio.run(replay(job("http://127.0.0.1:9", 3), lambda answered, failed: None))
    assert all("Connect" in (answer.error or "") for answer in result.answers)
    assert all(math.isnan(answer.finish_s) for answer in result.answers)


def test_the_truth_is_told_to_oracles_only() -> None:
    request = ReplayRequest(5, [1, 2], 33)
    silent = request_body(ReplayJob("", "m", [request], [0.0]), request)
    told = request_body(ReplayJob("", "m", [request], [0.0], tell_truth=True), request)
    assert silent["vllm_xargs"] == {"lengthwise_id": "5"}
    assert told["vllm_xargs"] == {"lengthwise_id": "5", "lengthwise_true_tokens": 33}
    assert silent["max_tokens"] == 33
    assert silent["ignore_eos"] is True


def test_an_open_length_ends_by_itself() -> None:
    request = ReplayRequest(5, [1, 2], None)
    body = request_body(ReplayJob("", "m", [request], [0.0], max_tokens=77), request)
    assert "ignore_eos" not in body
    assert body["max_tokens"] == 77


@given(
    pieces=st.lists(
        st.tuples(st.lists(st.integers(0, 10**6), max_size=4), st.text()), min_size=1, max_size=8
    ),
    cuts=st.lists(st.integers(0, 4000), max_size=12),
)
def test_any_text_in_any_packets_counts_the_same(
    pieces: list[tuple[list[int], str]], cuts: list[int]
) -> None:
    """Generated text may contain anything, even what looks like the stream's own keys."""
    texts = [text + '"token_ids":[1,2,3]"finish_reason":"stop"' for _, text in pieces]
    data = b"".join(chunk(ids, text) for (ids, _), text in zip(pieces, texts, strict=True)) + event(
        {"choices": [], "usage": {"prompt_tokens": 9}}
    )
    answer = Answer(request=0, scheduled_s=0.0, sent_s=0.0)
    reader = StreamReader(answer)
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for now, (start, end) in enumerate(pairwise(edges)):
        reader.feed(data[start:end], float(now))
    assert answer.output_tokens == sum(len(ids) for ids, _ in pieces) == len(answer.token_times)
    assert answer.prompt_tokens == 9
    assert answer.finish_reason is None
    assert not reader.done


def test_the_client_runs_in_a_process_of_its_own() -> None:
    async def use(url: str) -> Replay:
        seen: list[tuple[int, int]] = []
        with ClientProcess() as client:
            result = await asyncio.to_thread(
                client.replay,
                job(url, 5, scheduled_s=[0.1 * number for number in range(5)]),
                lambda answered, failed: seen.append((answered, failed)),
                lambda: None,
            )
            again = await asyncio.to_thread(
                client.replay, job(url, 2), lambda answered, failed: None, lambda: None
            )
        assert len(again.answers) == 2
        assert seen[-1] == (5, 0)
        return result

    result = asyncio.run(on_server(answer_all, use))
    assert [answer.error for answer in result.answers] == [None] * 5
