"""A request's body: taken in, and what it says that matters here.

How many answers it asks for, and what their length is predicted from.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import aiohttp
from aiohttp import web

from lengthwise.errors import InputError
from lengthwise.gateway.limits import Place, RefusedError
from lengthwise.hints.question import Question, answers_of, read_request
from lengthwise.predict.prediction import LORA, TTFT_DEADLINE_MS, deadline_ms

#: Requests to paths that end so have an answer that is generated, and are queued.
GENERATE: Final = ("/chat/completions", "/completions", "/responses", "/messages")
_MOST_PRIORITY: Final = 2**31 - 1  # clamped: more than anybody means


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
        values = json.loads(body)
    except (ValueError, RecursionError):
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
