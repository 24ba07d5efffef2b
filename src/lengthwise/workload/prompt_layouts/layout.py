"""What a layout of prompts and answers is, and answers as they stand in files.

An answer is a text, a message, or the whole response of a server.

A layout says how to tell it from others, and how to read a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.files import parse_json
from lengthwise.workload.conversation import (
    ASSISTANT,
    NOTHING,
    SYSTEM,
    Chat,
    Facts,
    MalformedError,
    Message,
    Turns,
    before_the_answer,
    facts_of,
    is_messages,
    read_messages,
    read_tools,
)
from lengthwise.workload.records import Record

LONGEST: Final = 10**8  #: tokens; what is longer is a mistake
EMPTY: Final = "the answer is empty"  #: why a row is left out
_USAGE_KEYS: Final = ("completion_tokens", "output_tokens")
_CONVERSATIONS: Final = ("messages", "conversation", "conversations")


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
    elif isinstance(cell, Decimal):  # what databases write sums and unlimited integers as
        number = float(cell)
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
    """What a text holds that is an object of JSON, None where that is broken; else the text."""
    return opened(text) if text.lstrip().startswith("{") else text


class Exchange(NamedTuple):
    """A prompt, and what is known of its answer."""

    chat: Chat | None  #: the prompt, where it is a conversation
    prompt: str  #: its text; of a conversation, the last message's
    answer: str | None = None  #: the answer's text, where it is there
    tokens: int | None = None  #: of the answer, as the file counts them
    samples: NDArray[np.int64] | None = None  #: tokens of several answers to the prompt
    other_answers: tuple[str, ...] = ()  #: texts of further answers to the prompt
    prompt_tokens: int | None = None  #: as the file counts them
    facts: Facts = NOTHING  #: what its request says beside the prompt
    beside: tuple[str, ...] = ()  #: other texts that a predictor sees: the system's prompt, hints


#: Whether a file has a layout, by its columns and first rows.
Matches = Callable[[Sequence[str], Sequence[Record]], bool]

#: From a row to its exchanges; a text says why the row, or one answer in it, is left out.
Reader = Callable[[Record, Turns], Iterator[Exchange | str]]


@dataclass(frozen=True)
class PromptLayout:
    """A kind of file with prompts and answers."""

    name: str
    source: str  #: whose it is, in Markdown
    prompt: str  #: what the prompt is, in words
    answer: str  #: what the answer, or its length, is
    matches: Matches
    read: Reader
    no_prompts: str = ""  #: why nothing can be learnt from such a file, and what would help


def has(*columns: str) -> Matches:
    """Whether a table has these columns."""
    return lambda names, head: set(columns) <= set(names)


def no_rows(record: Record, turns: Turns) -> Iterator[Exchange | str]:
    """The reader of files that have no prompts."""
    return iter(())


def one_of(names: Sequence[str], *wanted: str) -> str | None:
    """The first of some columns that a table has."""
    return next((name for name in wanted if name in names), None)


def first_cell(head: Sequence[Record], name: str) -> object:
    """The first cell of a column that is not missing."""
    return next((row[name] for row in head if row.get(name) is not None), None)


def opened(cell: Any) -> Any:
    """What a cell holds, perhaps as JSON; None where that is broken."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return parse_json(cell)
        except ValueError:
            return None
    return cell


def read_body(cell: Any) -> Record | None:
    """The body of a request that a cell holds, perhaps as JSON; None where it holds none."""
    cell = opened(cell)
    if isinstance(cell, dict) and isinstance(cell.get("body"), dict):
        cell = cell["body"]
    if not isinstance(cell, dict):
        return None
    said = next((cell[name] for name in _CONVERSATIONS if is_messages(cell.get(name))), None)
    return None if said is None else {**cell, "messages": said}


def exchange_of(
    body: Record, answer: str | None, tokens: int | None, prompt_tokens: int | None
) -> Exchange:
    """The exchange of a request to OpenAI's API, with `messages`, a `prompt` or an `input`.

    Raises:
        MalformedError: there is no prompt in it.
    """
    asked = next(
        (body[name] for name in ("messages", "prompt", "input") if body.get(name) is not None), None
    )
    if is_messages(asked):
        messages = read_messages(asked)
        instructions = body.get("instructions")  # of the Responses API, ahead of its input
        if isinstance(instructions, str) and instructions.strip():
            messages.insert(0, Message(SYSTEM, instructions))
        chat = before_the_answer(messages)._replace(tools=read_tools(body.get("tools")))
        return Exchange(
            chat, chat.question, answer, tokens, prompt_tokens=prompt_tokens, facts=facts_of(body)
        )
    if not isinstance(asked, str) or not asked.strip():
        raise MalformedError("the prompt is not text" if asked else "there is no prompt")
    return Exchange(None, asked, answer, tokens, prompt_tokens=prompt_tokens, facts=facts_of(body))


def mooncake_body(record: Record) -> Record:
    """The request in a row of a trace in Mooncake's layout that has the prompt itself."""
    body = record.get("payload")
    if isinstance(body, dict):
        return body
    return {"messages": record.get("messages"), "prompt": record.get("text_input")}
