"""What passes through a gateway: a request's body, and the usage of its answer.

A body is taken in, and says what matters here: how many answers it asks for, and what their length
is predicted from.

How long an answer was is read as its bytes pass: the `usage` of OpenAI's API, streamed or whole.
Events are passed on as they come. One is decoded only if it says what was used or why the answer
ended: in a stream of a thousand tokens two are.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import web

from lengthwise.errors import InputError
from lengthwise.files import parse_json
from lengthwise.gateway.limits import Place, RefusedError
from lengthwise.hints.question import Question, answers_of, read_request
from lengthwise.predict.prediction import LORA, MOST_TOKENS, TTFT_DEADLINE_MS, deadline_ms

#: Requests to paths that end so have an answer that is generated, and are queued: those of OpenAI's
#: API and Anthropic's, and all others of vLLM's that decode.
GENERATE: Final = (
    "/chat/completions",
    "/chat/completions/batch",
    "/completions",
    "/responses",
    "/messages",
    "/audio/transcriptions",
    "/audio/translations",
    "/cohere/v2/chat",
    "/inference/v1/generate",
    "/invocations",
)

LARGE: Final = 1 << 18  #: bytes of a body that the event loop does not read itself
# Reading JSON stops every other thread, for a microsecond each: beyond these a body is passed on
# unread. No prompt means so many, and none has so many token ids.
MOST_BRACKETS: Final = 1 << 16
MOST_COMMAS: Final = 1 << 21
_WHOLE: Final = 3  # a body is there after so many times the patience with a silent client
_MOST_PRIORITY: Final = 2**31 - 1  # clamped: more than anybody means
_MOST_BYTES: Final = 1 << 20  #: of one event, or of a whole answer: more is passed on unread
_END: Final = re.compile(rb"\r?\n\r?\n")
_TELLING: Final = re.compile(rb'"usage"\s*:\s*\{|"finish_reason"\s*:\s*"')
# In JSON text a quotation mark has a backslash before it, so this is found as a key alone.
_NO_USAGE: Final = re.compile(rb'\s*,\s*"usage"\s*:\s*null')


@dataclass(frozen=True)
class Asked:
    """A request to generate.

    Attributes:
        answers: how many, of all its prompts together.
        single: whether one prompt has one answer, whose length can be learnt from.
        most_tokens: where an answer is cut; 0: nowhere, as far as it says.
        streams: whether the answer comes in events.
        wants_usage: whether a stream is to end with what was used.
        priority: the class that its body names.
        deadline_s: from its arrival to when its first token is due; 0: none.
    """

    answers: int = 1
    single: bool = False
    most_tokens: int = 0
    streams: bool = False
    wants_usage: bool = False
    priority: int = 0
    deadline_s: float = 0.0


class Body(NamedTuple):
    """A request's body, read. Nothing is refused: the upstream says what is wrong with it."""

    asked: Asked
    questions: Sequence[Question]  #: its prompts; none where they cannot be read
    values: dict[str, Any] | None  #: it as JSON; None where it is no object


def read_body(body: bytes) -> Body:
    """What a body asks for."""
    if body.count(b"{") + body.count(b"[") > MOST_BRACKETS or body.count(b",") > MOST_COMMAS:
        return Body(Asked(), (), None)
    try:
        values = parse_json(body)
    except ValueError:
        return Body(Asked(), (), None)
    if not isinstance(values, dict):
        return Body(Asked(), (), None)
    try:
        questions = _of_model(values.get("model"), read_request(values))
    except InputError:
        questions = []
    options = values.get("stream_options")
    hints = questions[0].hints if questions else {}
    answers = answers_of(values)
    asked = Asked(
        answers=answers,
        single=answers == len(questions) == 1,
        most_tokens=questions[0].most_tokens if questions else 0,
        streams=values.get("stream") is True,
        wants_usage=isinstance(options, dict) and options.get("include_usage") is True,
        priority=clamped_priority(values.get("priority")),
        deadline_s=(deadline_ms(hints.get(TTFT_DEADLINE_MS)) or 0.0) / 1e3,
    )
    return Body(asked, questions, values)


async def read_aside(body: bytes) -> Body:
    """`read_body`; a large one in a thread, since a second of it would hold up everybody else."""
    if len(body) <= LARGE:
        return read_body(body)
    return await asyncio.to_thread(read_body, body)


def clamped_priority(value: object) -> int:
    """A priority class, 0 where it is no number."""
    try:
        number = float(value) if isinstance(value, int | float | str) else 0.0
    except (ValueError, OverflowError):
        return 0
    if math.isnan(number):
        return 0
    return int(min(max(number, -_MOST_PRIORITY), _MOST_PRIORITY))


def asking_for_usage(body: bytes, values: Mapping[str, Any]) -> bytes:
    """A request for a stream that ends with what was used; nothing else in it changes.

    Args:
        body: of the request, a JSON object that is not empty.
        values: the same, read.
    """
    rest = body.lstrip()
    # JSON may begin with a mark of its encoding, or have more than one byte for each character.
    plain = rest.startswith(b"{") and not rest.startswith(b"{\0")
    if plain and "stream_options" not in values:
        return b'{"stream_options":{"include_usage":true},' + rest.removeprefix(b"{")
    given = values.get("stream_options")
    options = {**(given if isinstance(given, dict) else {}), "include_usage": True}
    return json.dumps({**values, "stream_options": options}).encode()


def _of_model(model: object, questions: list[Question]) -> list[Question]:
    """With the model's name among the hints: behind one address there may be several."""
    hints = questions[0].hints  # of all
    if not isinstance(model, str) or LORA in hints:
        return questions
    hints = {**hints, LORA: model}
    return [question._replace(hints=hints) for question in questions]


async def take_in(request: web.Request, place: Place, patience_s: float) -> None:
    """Keep a request's body, every part of it counted before the next is read.

    Args:
        request: the client's.
        place: where it is kept.
        patience_s: with a client that sends nothing; one that drips has three times as long for
            the whole body, since it holds a place of the queue.

    Raises:
        RefusedError: there is no room for it, or it did not come.
    """
    parts: list[bytes] = []
    loop = asyncio.get_running_loop()
    whole_s = _WHOLE * patience_s
    until_s = loop.time() + whole_s
    try:
        while True:
            async with asyncio.timeout_at(min(loop.time() + patience_s, until_s)):
                part = await request.content.readany()
            if not part:
                place.body = b"".join(parts)
                return
            place.keep(len(part))
            parts.append(part)
    except TimeoutError:
        dripped = loop.time() >= until_s
        reason = (
            f"the body was not whole after {whole_s:g} s"
            if dripped
            else f"nothing of the body came for {patience_s:g} s"
        )
        raise RefusedError(408, reason, "incomplete") from None
    except (aiohttp.ClientError, web.RequestPayloadError, OSError):
        raise RefusedError(400, "the body broke off", "incomplete") from None


class Usage(NamedTuple):
    """What an answer says of itself."""

    output_tokens: int
    prompt_tokens: int | None
    finished: str  #: "stop", "length", "tool_calls", …


class _Reader:
    def __init__(self) -> None:
        self._tokens: dict[str, Any] | None = None
        self._finished: str | None = None

    @property
    def found(self) -> Usage | None:
        """What was said so far; None while something is missing."""
        if self._tokens is None or self._finished is None:
            return None
        output = _count(self._tokens.get("completion_tokens"))
        if output is None:
            return None
        return Usage(output, _count(self._tokens.get("prompt_tokens")), self._finished)

    def _read(self, values: object) -> bool:
        """Take in an object of the API; whether it has nothing but what was used."""
        if not isinstance(values, dict):
            return False
        choices = values.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            if isinstance(reason, str):
                self._finished = reason
        if isinstance(values.get("usage"), dict):
            self._tokens = values["usage"]
            return choices == []
        return False


def _count(tokens: object) -> int | None:
    """Tokens as an answer counts them; None where that is no number that there can be."""
    return tokens if type(tokens) is int and 0 <= tokens <= MOST_TOKENS else None


class StreamUsage(_Reader):
    """Reads a stream of events.

    Args:
        hide: the client did not ask for what was used: it is taken out of what is passed on.
    """

    def __init__(self, hide: bool) -> None:
        super().__init__()
        self.changes = hide  #: whether what is passed on may be less than what came
        self._rest = b""
        self._too_long = False

    def feed(self, data: bytes) -> bytes:
        """What is passed on of these bytes and of those kept back: whole events."""
        if self._too_long:
            return data
        events, begin = [], 0
        data = self._rest + data
        for end in _END.finditer(data):
            events.append(self._event(data[begin : end.end()]))
            begin = end.end()
        self._rest = data[begin:]
        if len(self._rest) > _MOST_BYTES:
            self._too_long = True
            events.append(self.flush())
        return b"".join(events)

    def flush(self) -> bytes:
        """What was kept back, at the end of the stream."""
        rest, self._rest = self._rest, b""
        return rest

    def _event(self, event: bytes) -> bytes:
        if _TELLING.search(event):
            text = b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
            try:
                only_usage = self._read(parse_json(text))
            except ValueError:
                only_usage = False
            if only_usage and self.changes:
                return b""
        return _NO_USAGE.sub(b"", event) if self.changes else event


class WholeUsage(_Reader):
    """Reads an answer that comes as one JSON object."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = False
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """These bytes, which are passed on."""
        self._size += len(data)
        if self._size <= _MOST_BYTES:
            self._parts.append(data)
        else:
            self._parts.clear()
        return data

    def flush(self) -> bytes:
        """Nothing: all was passed on. What the whole says is read."""
        with contextlib.suppress(ValueError):
            self._read(parse_json(b"".join(self._parts)))
        self._parts.clear()
        return b""


class AnswerUsage:
    """Chooses how an answer is read, by its headers, and remembers what was found.

    Args:
        hide: see `StreamUsage`.
    """

    def __init__(self, hide: bool) -> None:
        self.hide = hide
        self._reading: StreamUsage | WholeUsage | None = None

    def __call__(self, headers: Mapping[str, str]) -> StreamUsage | WholeUsage | None:
        """What reads an answer with these headers; None where nothing can."""
        self._reading = None
        kind = headers.get("Content-Type", "")
        if headers.get("Content-Encoding", "identity") != "identity":
            return None
        if kind.startswith("text/event-stream"):
            self._reading = StreamUsage(self.hide)
        elif kind.startswith("application/json"):
            self._reading = WholeUsage()
        return self._reading

    @property
    def found(self) -> Usage | None:
        """What the answer said of itself, as far as it passed."""
        return None if self._reading is None else self._reading.found
