"""The client: replays requests over streaming HTTP and notes when every token arrives.

Requests are sent by a clock: the wall's, or one that runs at the engine's own speed. A shared
machine is now faster, now slower. Where arrivals keep to the wall, a load of 1.2 is then 1.1 in one
round and 1.4 in the next, and above capacity the queue depends on nothing more. So where a load is
asked for as a multiple of capacity, the arrivals' clock slows down and speeds up with the engine:
it advances by what the steps of the last seconds would have taken when the capacity was measured.
Latencies are those of the wall all the same.

Prompts are sent as token ids to `/v1/completions`, so the server sees exactly the ids that
predictors were trained on. Open loop: each request leaves at its own time, however slow the answers
are. Closed loop: N clients, each sending its next request when the last one is answered. Sessions:
later turns leave their delay after the ones before them were answered.
"""

from __future__ import annotations

import asyncio
import json
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import aiohttp
import numpy as np

from lengthwise.compare.specs import Turns
from lengthwise.files import parse_json
from lengthwise.simulate.engine import WORK, StepCost

_WINDOW_S: Final = 2.0  # steps whose speed counts: a quarter of a second of them arrives at a time
_TICK_S: Final = 0.1  # the speed is looked up so often

_TOKEN_IDS = b'"token_ids":['
_FINISH_REASON = b'"finish_reason":"'
_USAGE = b'"usage":{'
_ERROR = b'data: {"error"'
_DONE = b"data: [DONE]"


class Pace(NamedTuple):
    """What the engine's clock goes by."""

    steps: Path  #: the file in which the engine records its steps
    cost: StepCost  #: of its tokens, what steps took when this clock ran like the wall's


class Clock(Protocol):
    """Shows seconds since the start of a round."""

    async def until(self, time_s: float) -> float:
        """Wait until it shows `time_s`; return when that was, in s of the wall since the start."""


class WallClock:
    """The wall's; it starts when it is made."""

    def __init__(self) -> None:
        """Start it, in a running event loop."""
        self._loop = asyncio.get_running_loop()
        self.started_s = self._loop.time()

    async def until(self, time_s: float) -> float:
        """Wait until it shows `time_s`."""
        await asyncio.sleep(self.started_s + time_s - self._loop.time())
        return time_s


class EngineClock:
    """Runs at the engine's speed; it starts when it is made, as fast as the wall's."""

    def __init__(self, pace: Pace) -> None:
        """Start it, in a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._pace = pace
        self._recent: deque[tuple[float, float]] = deque()  # of each step: s expected, s taken
        self._expected_s = self._taken_s = 0.0  # sums over these
        self._offset = 0  # bytes read
        self.started_s = self._read_s = self._loop.time()
        self._shown_s = 0.0
        self.speed = 1.0

    async def until(self, time_s: float) -> float:
        """Wait until it shows `time_s`."""
        while True:
            now = self._loop.time()
            self._shown_s += (now - self._read_s) * self.speed
            self._read_s = now
            left_s = (time_s - self._shown_s) / self.speed
            if left_s <= 0:
                return now - self.started_s + left_s
            await asyncio.sleep(min(left_s, _TICK_S))
            self._look_up_speed()

    def _look_up_speed(self) -> None:
        """Take the steps up that the engine recorded since; without any it stays as it was."""
        try:
            with self._pace.steps.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return  # nothing has run yet
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        # The header has no duration, and where the engine had idled it is unknown.
        steps = [step for step in map(json.loads, whole.splitlines()) if step.get("duration_s")]
        work = np.zeros((len(steps), len(WORK)))
        for place, name in enumerate(("prefill_tokens", "decode_tokens")):
            work[:, place] = [step[name] for step in steps]
        for step, expected_s in zip(steps, self._pace.cost.seconds(work).tolist(), strict=True):
            self._recent.append((expected_s, step["duration_s"]))
            self._expected_s += expected_s
            self._taken_s += step["duration_s"]
        while len(self._recent) > 1 and self._taken_s - self._recent[0][1] >= _WINDOW_S:
            expected_s, taken_s = self._recent.popleft()
            self._expected_s -= expected_s
            self._taken_s -= taken_s
        if self._expected_s > 0:
            self.speed = self._expected_s / self._taken_s


@dataclass(frozen=True)
class ReplayRequest:
    """One request of a workload.

    Attributes:
        number: its number in the workload; the same number is the same request in every round.
        prompt_ids: the prompt in the served model's tokens, chat template applied.
        output_tokens: the answer's length to reproduce (ending is forced there and only there);
            None lets the model end its answer by itself.
        seed: of an answer that the model ends by itself, so that it says the same in every round;
            None answers at random.
        known_tokens: of such an answer, its length where an earlier run found it out. Only oracles
            are told.
        counted_tokens: tokens of the prompt as its data counts them, with the tokenizer of the
            model that gave the answers; None where `prompt_ids` are counted. An emulated engine
            takes it for the prompt's length.
    """

    number: int
    prompt_ids: Sequence[int]
    output_tokens: int | None
    seed: int | None = None
    known_tokens: int | None = None
    counted_tokens: int | None = None

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the prompt."""
        return self.counted_tokens or len(self.prompt_ids)

    @property
    def answer_tokens(self) -> int:
        """Tokens of the answer as far as they are known, 0 where they are not."""
        return self.output_tokens or self.known_tokens or 0


@dataclass(frozen=True)
class ReplayJob:
    """One round for the client.

    Attributes:
        url: the server, without a trailing slash.
        model: the model's name there.
        requests: what to send, in this order where times are equal.
        scheduled_s: when to send each, in seconds from the start of the round; None for the
            closed loop.
        pace: send by the engine's clock; None: by the wall's.
        turns: sessions, whose later turns are sent after the ones before them were answered.
        clients: for the closed loop, how many requests are under way at any time.
        tell_truth: send the true length along, for oracles. Other rounds never carry it.
        max_tokens: the limit where a request's own length is open.
    """

    url: str
    model: str
    requests: Sequence[ReplayRequest]
    scheduled_s: Sequence[float] | None
    pace: Pace | None = None
    turns: Turns | None = None
    clients: int | None = None
    tell_truth: bool = False
    max_tokens: int = 1024


@dataclass(slots=True)
class Answer:
    """What the client saw of one request; times in seconds from the start of the round."""

    request: int
    scheduled_s: float
    sent_s: float = math.nan
    first_token_s: float = math.nan
    finish_s: float = math.nan
    token_times: array[float] = field(default_factory=lambda: array("f"))  # s from sent_s
    prompt_tokens: int = 0
    output_tokens: int = 0
    finish_reason: str | None = None
    error: str | None = None


@dataclass(frozen=True)
class Replay:
    """A finished round.

    Attributes:
        started_s: the monotonic clock (shared by all processes of a machine) at the start, in s.
        answers: one per request, in the order of the requests.
    """

    started_s: float
    answers: list[Answer]


class StreamReader:
    """Takes a server-sent event stream apart without decoding more JSON than it must."""

    def __init__(self, answer: Answer) -> None:
        """Fill `answer` from the stream."""
        self._answer = answer
        self._rest = b""
        self.done = False

    def feed(self, data: bytes, now_s: float) -> None:
        """Take the bytes that arrived at `now_s` (s from the start of the round)."""
        *events, self._rest = (self._rest + data).split(b"\n\n")
        answer = self._answer
        for event in events:
            tokens = _count_token_ids(event)
            if tokens:
                if not answer.token_times:
                    answer.first_token_s = now_s
                answer.finish_s = now_s
                answer.output_tokens += tokens
                answer.token_times.extend([now_s - answer.sent_s] * tokens)
            # Quotes inside of generated text are escaped, so these matches are keys.
            if _FINISH_REASON in event:
                answer.finish_reason = _payload(event)["choices"][0]["finish_reason"]
            if _USAGE in event:
                answer.prompt_tokens = _payload(event)["usage"]["prompt_tokens"]
            if event.startswith(_ERROR):
                answer.error = _error_message(_payload(event))
            elif event.startswith(_DONE):
                self.done = True


async def replay(job: ReplayJob, progress: Callable[[int, int], None]) -> Replay:
    """Run one round and return every request's answer, failed ones included.

    Args:
        job: what to send where and when.
        progress: called about four times a second with the numbers of answered and failed requests.
    """
    loop = asyncio.get_running_loop()
    times = job.scheduled_s if job.scheduled_s is not None else [0.0] * len(job.requests)
    answers = [
        Answer(request.number, scheduled_s)
        for request, scheduled_s in zip(job.requests, times, strict=True)
    ]
    # Connections are not reused: a server that drops an idle one would fail a request for nothing.
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=60)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        clock = EngineClock(job.pace) if job.pace is not None else WallClock()
        started = clock.started_s

        following = job.turns.followers() if job.turns is not None else {}

        async def send_in_time() -> None:
            later = set(following.values())
            first = [place for place in range(len(answers)) if place not in later]
            async with asyncio.TaskGroup() as under_way:
                for place in sorted(first, key=lambda place: answers[place].scheduled_s):
                    answers[place].scheduled_s = await clock.until(answers[place].scheduled_s)
                    under_way.create_task(take_turns(place))

        async def take_turns(place: int) -> None:
            await _exchange(session, job, job.requests[place], answers[place], started)
            while place in following and job.turns is not None:
                place = following[place]
                delay_s = job.turns.delay_s[place]
                answers[place].scheduled_s = loop.time() - started + delay_s
                await asyncio.sleep(delay_s)
                await _exchange(session, job, job.requests[place], answers[place], started)

        async def client(queue: Iterator[tuple[ReplayRequest, Answer]]) -> None:
            for request, answer in queue:
                answer.scheduled_s = loop.time() - started
                await _exchange(session, job, request, answer, started)

        pairs = zip(job.requests, answers, strict=True)
        if job.scheduled_s is None:
            work = [client(pairs) for _ in range(job.clients or 1)]
        else:
            work = [send_in_time()]
        tasks = asyncio.gather(*work)
        while not tasks.done():
            await asyncio.wait([tasks], timeout=0.25)
            failed = sum(answer.error is not None for answer in answers)
            answered = sum(answer.finish_reason is not None for answer in answers)
            progress(answered, failed)
        await tasks
    return Replay(started, answers)


async def _exchange(
    session: aiohttp.ClientSession,
    job: ReplayJob,
    request: ReplayRequest,
    answer: Answer,
    started: float,
) -> None:
    """Send one request and fill in its answer; whatever goes wrong becomes its error."""
    clock = asyncio.get_running_loop().time
    body = request_body(job, request)
    reader = StreamReader(answer)
    answer.sent_s = clock() - started
    try:
        async with session.post(f"{job.url}/v1/completions", json=body) as response:
            if response.status != 200:
                answer.error = f"HTTP {response.status}: {await _refusal(response)}"
                return
            async for data in response.content.iter_any():
                reader.feed(data, clock() - started)
    except (aiohttp.ClientError, OSError, ValueError, KeyError, IndexError) as error:
        answer.error = f"{type(error).__name__}: {error}".rstrip(": ")
        return
    wanted = request.output_tokens
    if answer.error is None and not reader.done:
        answer.error = "the stream ended early"
    elif answer.error is None and wanted is not None and answer.output_tokens != wanted:
        answer.error = f"answered with {answer.output_tokens} tokens, {wanted} were asked for"


def request_body(job: ReplayJob, request: ReplayRequest) -> dict[str, object]:
    """The JSON body of one request."""
    hints: dict[str, str | int] = {"lengthwise_id": str(request.number)}
    body: dict[str, object] = {
        "model": job.model,
        "prompt": list(request.prompt_ids),
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
        "vllm_xargs": hints,
    }
    if request.output_tokens is None:
        body["max_tokens"] = job.max_tokens
        if request.seed is not None:
            body["seed"] = request.seed  # the rest is as the model's generation settings have it
    else:
        # What is said does not matter here, only for how long: greedy is the cheapest.
        body |= {"max_tokens": request.output_tokens, "ignore_eos": True, "temperature": 0.0}
    if job.tell_truth and request.answer_tokens:
        hints["lengthwise_true_tokens"] = request.answer_tokens
    return body


def _count_token_ids(event: bytes) -> int:
    start = event.find(_TOKEN_IDS)
    if start < 0:
        return 0
    start += len(_TOKEN_IDS)
    end = event.find(b"]", start)
    return event.count(b",", start, end) + 1 if end > start else 0


def _payload(event: bytes) -> Any:
    return json.loads(event.removeprefix(b"data: "))


def _error_message(payload: Any) -> str:
    error = payload.get("error", payload) if isinstance(payload, dict) else payload
    message = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(message).split())[:300]


async def _refusal(response: aiohttp.ClientResponse) -> str:
    text = await response.text()
    try:
        return _error_message(parse_json(text))
    except ValueError:
        return " ".join(text.split())[:300]
