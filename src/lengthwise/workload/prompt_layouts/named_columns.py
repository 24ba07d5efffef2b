"""Any table: a column of prompts, and one of answers or of their lengths, found by their names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.workload.conversation import (
    ASSISTANT,
    Chat,
    MalformedError,
    Turns,
    answers_of,
    before_the_answer,
    is_messages,
    looks_like_messages,
    read_messages,
)
from lengthwise.workload.prompt_layouts.layout import (
    EMPTY,
    Answer,
    Exchange,
    PromptLayout,
    exchange_of,
    one_of,
    read_answer,
    read_body,
    read_length,
)
from lengthwise.workload.records import Record, UnknownLayoutError, require_column

PROMPT_COLUMNS: Final = (
    "prompt",
    "instruction",
    "question",
    "query",
    "input",
    "text_input",
    "text",
    "messages",
    "conversation",
    "conversations",
)
LENGTH_COLUMNS: Final = (
    "response_tokens",
    "output_tokens",
    "completion_tokens",
    "answer_tokens",
    "generated_tokens",
    "generated_len",
    "output_len",
    "output_length",
    "length",
)
PROMPT_TOKENS_COLUMNS: Final = (
    "prompt_tokens",
    "input_tokens",
    "prompt_len",
    "prompt_length",
    "input_len",
    "input_length",
)
ANSWER_COLUMNS: Final = (
    "response",
    "answer",
    "output",
    "completion",
    "generated_text",
    "generated",
)
BESIDE_COLUMNS: Final = ("input", "context")  #: what an instruction is about, where it is apart
SAMPLES_COLUMN: Final = "samples"  #: lengths of several answers to the prompt


@dataclass(frozen=True)
class ColumnNames:
    """Which column says what; None where the table has none."""

    prompt: str
    beside: str | None = None  #: joined to the prompt, as Alpaca's input is to its instruction
    length: str | None = None
    answer: str | None = None
    others: tuple[str, ...] = ()  # lengths of further answers to the same prompt
    samples: str | None = None
    prompt_tokens: str | None = None

    def read(self, record: Record, turns: Turns) -> Iterator[Exchange | str]:
        """The exchanges of a row; see `layout.Reader`.

        Raises:
            MalformedError: something in it cannot be what it should be.
        """
        if self.length is None and self.answer is None:
            yield from self._own_answers(record, turns)
            return
        answer = Answer(None, None)
        if self.answer is not None:
            answer = read_answer(record.get(self.answer), self.answer)
        if self.length is None and answer.tokens is None and not (answer.text or "").strip():
            yield EMPTY
            return
        tokens = answer.tokens
        if self.length is not None:
            tokens = read_length(record.get(self.length), self.length)
        prompt_tokens = answer.prompt_tokens
        if self.prompt_tokens is not None:
            prompt_tokens = read_length(record.get(self.prompt_tokens), self.prompt_tokens)
            if prompt_tokens == 0:
                raise MalformedError(f"{self.prompt_tokens} is 0: a prompt has at least one token")
        chat, text = self.prompt_of(record)
        if chat is not None:
            refuse_other_answer(chat, answer.text)
        yield Exchange(
            chat,
            text,
            answer.text,
            tokens,
            self._samples(record, tokens),
            answer.others,
            prompt_tokens,
        )

    def _samples(self, record: Record, tokens: int | None) -> NDArray[np.int64] | None:
        """Lengths of all answers to the prompt, where there are several."""
        if self.samples is not None:
            return read_samples(record.get(self.samples))
        if not self.others:
            return None
        return read_samples(
            [tokens, *(read_length(record.get(name), name) for name in self.others)]
        )

    def prompt_of(self, record: Record) -> tuple[Chat | None, str]:
        """The prompt of a row, and its text; of a conversation, what is asked last.

        Raises:
            MalformedError: there is none.
        """
        cell = record.get(self.prompt)
        if is_messages(cell):
            chat = before_the_answer(read_messages(cell))
            return chat, chat.question
        if isinstance(cell, list) or (isinstance(cell, str) and looks_like_messages(cell)):
            raise MalformedError("the prompt is a list, but not of messages with a role")
        body = read_body(cell)
        if body is not None:
            found = exchange_of(body, None, None, None)
            return found.chat, found.prompt
        if not isinstance(cell, str):
            raise MalformedError("there is no prompt" if cell is None else "the prompt is not text")
        if not cell.strip():
            raise MalformedError("the prompt is empty")
        beside = None if self.beside is None else record.get(self.beside)
        if isinstance(beside, str) and beside.strip():
            return None, f"{cell}\n\n{beside}"
        return None, cell

    def _own_answers(self, record: Record, turns: Turns) -> Iterator[Exchange | str]:
        for found in answers_of(read_messages(record.get(self.prompt)), turns):
            if isinstance(found, str):
                yield found
            else:
                chat, place = found
                yield Exchange(chat, chat.question, chat.conversation[place].content)


def refuse_other_answer(chat: Chat, answer: str | None) -> None:
    """A conversation that goes on after the prompt must go on with the answer of its row.

    Raises:
        MalformedError: it ends with another, so that it cannot be told which of them was given.
    """
    after = [
        message.content
        for message in chat.conversation[chat.length :]
        if message.role == ASSISTANT and message.content.strip()
    ]
    if answer is not None and after and answer.strip() not in (after[0].strip(), after[-1].strip()):
        raise MalformedError("the conversation ends with another answer than the row's own")


def read_samples(cell: Any) -> NDArray[np.int64]:
    """Lengths of several answers.

    Raises:
        MalformedError: the cell is no list of them.
    """
    if not isinstance(cell, list) or not cell:
        raise MalformedError(f"{SAMPLES_COLUMN} is not a list of lengths")
    return np.array([read_length(length, SAMPLES_COLUMN) for length in cell], dtype=np.int64)


def name_columns(
    path: Path,
    names: Sequence[str],
    head: Sequence[Record],
    *,
    prompt: str | None,
    length: str | None,
    answer: str | None,
    prompt_tokens: bool,
) -> ColumnNames:
    """Which columns of a table say what: those that were asked for, or the first guesses.

    Raises:
        InputError: one is not there; lists those that are.
    """
    lengths = [] if length is None else [length] if length in names else length.split(",")
    length = next(iter(lengths), None)
    for wanted in (*lengths, answer):
        if wanted is not None:
            require_column(path, names, wanted)
    chosen = choose_prompt_column(path, names, prompt)
    guessed = length is None and answer is None
    if guessed:
        length = one_of(names, *(name for name in LENGTH_COLUMNS if name != chosen))
        answer = one_of(names, *(name for name in ANSWER_COLUMNS if name != chosen))
    is_conversation = any(is_messages(row.get(chosen)) for row in head)
    if length is None and answer is None and not is_conversation:
        raise UnknownLayoutError(
            f"{path}: no column of answer lengths found; the columns are "
            f"{', '.join(names)}: name one with --length-column (tokens) or --answer-column "
            "(text)"
        )
    beside = one_of(names, *BESIDE_COLUMNS) if chosen == "instruction" else None
    return ColumnNames(
        chosen,
        beside if beside != answer else None,
        length,
        answer if length is None or _is_text(head, answer) else None,
        tuple(lengths[1:]),
        SAMPLES_COLUMN if guessed and length and SAMPLES_COLUMN in names else None,
        one_of(names, *PROMPT_TOKENS_COLUMNS) if prompt_tokens else None,
    )


def choose_prompt_column(path: Path, names: Sequence[str], wanted: str | None) -> str:
    """The column of prompts: the one that was asked for, or the first guess that is there.

    Raises:
        InputError: there is none.
    """
    if wanted is not None:
        require_column(path, names, wanted)
        return wanted
    found = one_of(names, *PROMPT_COLUMNS)
    if found is None:
        raise UnknownLayoutError(
            f"{path}: no column of prompts found; the columns are {', '.join(names)}: "
            "name one with --prompt-column"
        )
    return found


def plain_layout(columns: ColumnNames) -> PromptLayout:
    """A table of no published layout."""
    beside = f" and {columns.beside}" if columns.beside else ""
    answer = f"tokens in {columns.length}" if columns.length else f"text in {columns.answer}"
    if columns.length is None and columns.answer is None:
        answer = "its assistant's turns"
    return PromptLayout(
        "columns",
        "any table",
        f"{columns.prompt}{beside}",
        answer,
        lambda names, head: True,
        columns.read,
    )


def _is_text(head: Sequence[Record], name: str | None) -> bool:
    """Whether a column beside the lengths holds the answers' texts, to be told from prompts."""
    return name is not None and all(
        isinstance(row.get(name), str | type(None) | dict | list) for row in head
    )
