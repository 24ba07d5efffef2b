"""What a layout of prompts and answers is: how to tell it from others, and how to read a row."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.workload.conversation import (
    SYSTEM,
    Chat,
    MalformedError,
    Message,
    Turns,
    before_the_answer,
    is_messages,
    read_messages,
    read_tools,
)
from lengthwise.workload.file_kinds import Record
from lengthwise.workload.request_facts import NOTHING, Facts, facts_of


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


EMPTY: Final = "the answer is empty"  #: why a row is left out
_CONVERSATIONS: Final = ("messages", "conversation", "conversations")

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
            return json.loads(cell)
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
