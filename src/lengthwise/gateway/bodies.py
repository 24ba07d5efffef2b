"""What passes through a gateway, and how much of it may wait.

What may wait: requests and bytes, of everybody and of one API key.

A request's body: taken in, and what it says that matters here. That is how many answers it asks
for, and what their length is predicted from.

How long an answer was, as its bytes pass: the `usage` of OpenAI's API, streamed or whole. Events
are passed on as they come. One is decoded only if it says what was used or why the answer ended: in
a stream of a thousand tokens two are.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import math
import re
import secrets
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import web

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.files import parse_json
from lengthwise.hints.question import Question, answers_of, read_request
from lengthwise.predict.prediction import LORA, TTFT_DEADLINE_MS, deadline_ms

#: Requests to paths that end so have an answer that is generated, and are queued.
GENERATE: Final = ("/chat/completions", "/completions", "/responses", "/messages")

_KEYS: Final = ("Authorization", "X-Api-Key", "Api-Key")
_MOST_RETRY_S: Final = 60
_RECENT: Final = 64  #: requests that went, from which the pace is known
_MOST_PRIORITY: Final = 2**31 - 1  # clamped: more than anybody means
_MOST_BYTES: Final = 1 << 20  #: of one event, or of a whole answer: more is passed on unread
_END: Final = re.compile(rb"\r?\n\r?\n")
_TELLING: Final = re.compile(rb'"usage"\s*:\s*\{|"finish_reason"\s*:\s*"')
# In JSON text a quotation mark has a backslash before it, so this is found as a key alone.
_NO_USAGE: Final = re.compile(rb'\s*,\s*"usage"\s*:\s*null')


class RefusedError(LengthwiseError):
    """A request that is not served, and why.

    Attributes:
        status: of the answer.
        outcome: what it is counted as.
        retry_after_s: when to come again; None: it is of no use.
    """

    def __init__(
        self, status: int, reason: str, outcome: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(reason)
        self.status, self.outcome, self.retry_after_s = status, outcome, retry_after_s


@dataclass(frozen=True)
class Limits:
    """The bounds of a queue.

    Attributes:
        requests: that wait.
        bytes: of bodies that are kept: until their request was sent, or given up.
        per_key: requests of one API key that wait; None for no such bound. Requests without a key
            have one in common.
        body_bytes: of one request.
        wait_s: that a request may wait.
    """

    requests: int = 10_000
    bytes: int = 256_000_000
    per_key: int | None = None
    body_bytes: int = 32_000_000
    wait_s: float = 120.0


class Keys:
    """Tells API keys apart without keeping one: a keyed hash, of which no two processes agree."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def digest(self, headers: Mapping[str, str]) -> bytes:
        """What stands for the key that a request carries."""
        given = "\n".join(headers.get(name, "") for name in _KEYS)
        # A header may hold bytes that are no text, which aiohttp keeps as surrogates.
        data = given.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(data, digest_size=16, key=self._secret).digest()


class Room:
    """The room for requests that wait; all of it is taken, or refused, before anything is kept."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.bytes = 0
        self._by_key: Counter[bytes] = Counter()
        self._went: deque[float] = deque(maxlen=_RECENT)

    def enter(self, key: bytes) -> None:
        """Take a place.

        Raises:
            RefusedError: there is none.
        """
        if self.requests >= self.limits.requests:
            raise self._full(f"{self.requests:,} requests wait already")
        if self.limits.per_key is not None and self._by_key[key] >= self.limits.per_key:
            raise self._full(f"{self._by_key[key]:,} requests of this API key wait already")
        self.enter_again(key)

    def enter_again(self, key: bytes) -> None:
        """Take a place back that was left too soon; it is never refused."""
        self.requests += 1
        self._by_key[key] += 1

    def leave(self, key: bytes) -> None:
        """Give the place back."""
        self.requests -= 1
        self._by_key[key] -= 1
        if not self._by_key[key]:
            del self._by_key[key]

    def keep(self, size: int, so_far: int) -> None:
        """Take room for bytes of a body of which `so_far` are kept already.

        Raises:
            RefusedError: there is none, or the body is too large for any.
        """
        if so_far + size > self.limits.body_bytes:
            most = self.limits.body_bytes
            raise RefusedError(413, f"the body has more than {most:,} bytes", "too_large")
        if self.bytes + size > self.limits.bytes:
            raise self._full(f"bodies of {self.bytes:,} bytes are kept already")
        self.bytes += size

    def let_go(self, size: int) -> None:
        """Give room for bytes back."""
        self.bytes -= size

    def went(self, now_s: float) -> None:
        """Note that a request went to an upstream."""
        self._went.append(now_s)

    def retry_after_s(self) -> int:
        """When all that wait now will have gone, at the pace of those that went last."""
        if len(self._went) < 2 or self._went[-1] <= self._went[0]:
            return 1
        pace = (len(self._went) - 1) / (self._went[-1] - self._went[0])
        return min(max(math.ceil(self.requests / pace), 1), _MOST_RETRY_S)

    def _full(self, reason: str) -> RefusedError:
        return RefusedError(429, f"{reason}: come again", "full", self.retry_after_s())


class Place:
    """What one request holds of the room; given back once, whatever happens.

    Attributes:
        key: the digest of its API key.
        body: as long as it is kept.
    """

    def __init__(self, room: Room, key: bytes) -> None:
        """Take a place.

        Raises:
            RefusedError: there is none.
        """
        room.enter(key)
        self.key, self.body = key, b""
        self._room = room
        self._waits, self._size = True, 0

    def keep(self, size: int) -> None:
        """Take room for more bytes of its body; see `Room.keep`."""
        self._room.keep(size, self._size)
        self._size += size

    def let_go(self) -> None:
        """Its body is not kept any more."""
        self.body = b""
        self._room.let_go(self._size)
        self._size = 0

    def leave(self) -> None:
        """It does not wait any more."""
        if self._waits:
            self._waits = False
            self._room.leave(self.key)

    def enter_again(self) -> None:
        """It waits again."""
        self._waits = True
        self._room.enter_again(self.key)


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
        patience_s: with a client that sends nothing.

    Raises:
        RefusedError: there is no room for it, or it did not come.
    """
    parts: list[bytes] = []
    try:
        while True:
            async with asyncio.timeout(patience_s):
                part = await request.content.readany()
            if not part:
                place.body = b"".join(parts)
                return
            place.keep(len(part))
            parts.append(part)
    except TimeoutError:
        reason = f"nothing of the body came for {patience_s:g} s"
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
        output, prompt = (self._tokens.get(name) for name in ("completion_tokens", "prompt_tokens"))
        if type(output) is not int or output < 0:
            return None
        return Usage(output, prompt if type(prompt) is int else None, self._finished)

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
