"""Answers as they stand in files: a text, a message, or the whole response of a server."""

from __future__ import annotations

import json
import math
from typing import Any, Final, NamedTuple

from lengthwise.workload.conversation import ASSISTANT, MalformedError, is_messages, read_messages

LONGEST: Final = 10**8  #: tokens; what is longer is a mistake
_USAGE_KEYS: Final = ("completion_tokens", "output_tokens")


class Answer(NamedTuple):
    """What is known of an answer."""

    text: str | None  #: None where only its length is there
    tokens: int | None  #: None where only its text is there
    prompt_tokens: int | None = None
    others: tuple[str, ...] = ()  #: texts of further answers to the same prompt


def read_answer(cell: Any, column: str) -> Answer:
    """The answer in a cell: text, a message, a list of messages, or a response with `choices`.

    Raises:
        MalformedError: it is nothing of the kind.
    """
    if isinstance(cell, str):
        packed = _unpacked(cell)
        if not _is_response(packed):
            return Answer(cell, None)
        cell = packed
    if isinstance(cell, dict) and isinstance(cell.get("body"), dict):
        cell = cell["body"]
    if _is_response(cell):
        return _response(cell, column)
    if isinstance(cell, list) and any(map(_is_item, cell)):
        return Answer(_output(cell), None)
    if is_messages(cell):
        said = [each.content for each in read_messages(cell) if each.role == ASSISTANT]
        if not said:
            raise MalformedError(f"{column} has no message of an assistant")
        return Answer(said[-1], None)
    if isinstance(cell, dict) and isinstance(cell.get("content"), str):
        return Answer(cell["content"], None)
    raise MalformedError(f"{column} is not text")


def read_length(cell: Any, column: str) -> int:
    """A number of tokens, from 0.

    Raises:
        MalformedError: it is none.
    """
    number = cell
    if isinstance(cell, str):
        try:
            number = float(cell)
        except ValueError:
            number = None
    if number is None or isinstance(number, bool) or not isinstance(number, int | float):
        shown = "missing" if cell is None or cell == "" else f"{cell!r}, not a number"
        raise MalformedError(f"{column} is {shown}")
    if number < 0:
        raise MalformedError(f"{column} is negative: {cell}")
    if number > LONGEST:
        raise MalformedError(f"{column} is too large to be a number of tokens")
    if math.isnan(number):
        raise MalformedError(f"{column} is NaN")
    if number != int(number):
        raise MalformedError(f"{column} is not a whole number of tokens: {cell}")
    return int(number)


def read_usage(cell: Any) -> tuple[int | None, int | None]:
    """Tokens of the answer and of the prompt in a `usage` object, None where it has none."""
    if isinstance(cell, str):
        cell = _unpacked(cell)
    if not isinstance(cell, dict):
        return None, None
    answer = next((cell[key] for key in _USAGE_KEYS if cell.get(key) is not None), None)
    prompt = cell.get("prompt_tokens", cell.get("input_tokens"))
    return (
        None if answer is None else read_length(answer, "usage.completion_tokens"),
        None if prompt is None else read_length(prompt, "usage.prompt_tokens"),
    )


def _is_response(cell: Any) -> bool:
    return isinstance(cell, dict) and (
        isinstance(cell.get("choices"), list)
        or isinstance(cell.get("usage"), dict)
        or (isinstance(cell.get("output"), list) and cell.get("object") == "response")
    )


def _response(cell: dict[str, Any], column: str) -> Answer:
    tokens, prompt_tokens = read_usage(cell.get("usage"))
    choices = cell.get("choices")
    texts = [_choice(choice) for choice in choices] if isinstance(choices, list) else []
    if not texts and isinstance(cell.get("output"), list):
        texts = [_output(cell["output"])]
    known = [text for text in texts if text]
    if not known and tokens is None:
        raise MalformedError(f"{column} has neither a text nor a usage")
    # The usage of several choices is their sum.
    return Answer(
        known[0] if known else None,
        tokens if len(texts) <= 1 else None,
        prompt_tokens,
        tuple(known[1:]),
    )


def _choice(choice: Any) -> str:
    if not isinstance(choice, dict):
        return ""
    message = choice.get("message")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    if isinstance(text, list):
        return "\n".join(part["text"] for part in text if isinstance(part, dict) and "text" in part)
    return text if isinstance(text, str) else ""


def _is_item(cell: Any) -> bool:
    """Whether it is a message among the items that a response of the Responses API has."""
    return (
        isinstance(cell, dict)
        and cell.get("type") == "message"
        and isinstance(cell.get("content"), list)
    )


def _output(items: list[Any]) -> str:
    """The text of a response of the Responses API: its items of type "message"."""
    return "\n".join(
        part["text"]
        for item in items
        if isinstance(item, dict) and isinstance(item.get("content"), list)
        for part in item["content"]
        if isinstance(part, dict) and isinstance(part.get("text"), str)
    )


def _unpacked(text: str) -> Any:
    """What a cell holds that has JSON in it; the text itself where it has none."""
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
