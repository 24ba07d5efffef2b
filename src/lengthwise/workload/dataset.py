"""Prompts and how long their answers were, from a table on disk.

A malformed row is left out, and kept on a list with the reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload.table import Rejection, Table, read_table

PROMPT_COLUMNS: Final = (
    "prompt",
    "instruction",
    "question",
    "query",
    "input",
    "text",
    "messages",
    "conversation",
)
LENGTH_COLUMNS: Final = (
    "response_tokens",
    "output_tokens",
    "completion_tokens",
    "answer_tokens",
    "generated_tokens",
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
ANSWER_COLUMNS: Final = ("response", "answer", "output", "completion", "generated_text")
SAMPLES_COLUMN: Final = "samples"  #: lengths of several answers to the prompt
MODEL_COLUMN: Final = "model"  #: whose answers they are
SPLIT_COLUMN: Final = "split"
SYSTEM_COLUMN: Final = "system"  #: the prompt of the system that stands ahead of the user's
TENANT_COLUMN: Final = "tenant"  #: who sends the prompt
LORA_COLUMN: Final = "lora"  #: the adapter that it is sent to
TASK_COLUMNS: Final = ("task", "category", "dataset")  #: what kind of prompt it is

_LONGEST: Final = 10**8  #: tokens; what is longer is a mistake

CountTokens = Callable[[list[str]], list[int]]  #: texts -> tokens of each


@dataclass(frozen=True)
class Dataset:
    """The rows that were asked for and are sound, in the order of the file."""

    name: str  #: the file's name
    prompts: list[str]
    lengths: NDArray[np.int64]  #: shape (n,), tokens of the answer; the first, if there are several
    samples: list[NDArray[np.int64]] | None  #: tokens of several answers, where the table has them
    rows: NDArray[np.int64]  #: shape (n,), row numbers in the file, from 1, without a header
    rejected: list[Rejection]  #: the malformed ones among those asked for
    model: str | None = None  #: whose answers these are, where all rows say the same
    selection: str = "all rows"  #: which rows were asked for, in words
    tasks: list[str] | None = None  #: what kind of prompt each is, where the table says
    systems: list[str] | None = None  #: system prompts, "" where there is none
    tenants: list[str] | None = None  #: "" where there is none
    loras: list[str] | None = None  #: "" where there is none
    prompt_tokens: NDArray[np.int64] | None = None  #: shape (n,), as the table counts them
    prompt_tokens_column: str | None = None  #: which column that was

    def first(self, count: int) -> Dataset:
        """The same, of the first rows only."""
        return replace(
            self,
            prompts=self.prompts[:count],
            lengths=self.lengths[:count],
            samples=self.samples and self.samples[:count],
            rows=self.rows[:count],
            selection=f"{self.selection}, the first {count}",
            tasks=self.tasks and self.tasks[:count],
            systems=self.systems and self.systems[:count],
            tenants=self.tenants and self.tenants[:count],
            loras=self.loras and self.loras[:count],
            prompt_tokens=None if self.prompt_tokens is None else self.prompt_tokens[:count],
        )

    def refuse_rejected(self) -> None:
        """Raise an InputError if any row was malformed, naming the first."""
        if self.rejected:
            first = self.rejected[0]
            raise InputError(
                f"{self.name}, row {first.row}: {first.reason} "
                f"(malformed rows in all: {len(self.rejected)}); mend the table, or leave such "
                "rows out with --skip-malformed"
            )


def load_dataset(
    path: str | Path,
    *,
    prompt_column: str | None = None,
    length_column: str | None = None,
    answer_column: str | None = None,
    split: str | None = None,
    where: Mapping[str, str] | None = None,
    limit: int | None = None,
    count_tokens: CountTokens | None = None,
    prompt_tokens: bool = False,
) -> Dataset:
    """Read prompts and lengths from a .parquet, .jsonl or .csv file.

    Args:
        path: the file.
        prompt_column: text, or a list of chat messages, whose contents are joined. None: the first
            of PROMPT_COLUMNS that the table has.
        length_column: tokens of the answer. None: the first of LENGTH_COLUMNS that the table has,
            unless `answer_column` is given; a column "samples" is then read as well.
        answer_column: the answer's text, to be counted by `count_tokens`. None: the first of
            ANSWER_COLUMNS, where there is no length column.
        split: keep rows whose column "split" is this.
        where: keep rows whose columns have these values, compared as text.
        limit: keep at most so many sound rows, the first ones.
        count_tokens: how many tokens each of a list of texts has.
        prompt_tokens: read how many tokens the prompts have, too, from the first of
            PROMPT_TOKENS_COLUMNS, where the table has one.

    Raises:
        InputError: no such file, not a table, a column or a row that was asked for is not there,
            or no sound row is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit of rows must be at least 1, not {limit}")
    table = read_table(Path(path))
    conditions = {**(where or {}), **({} if split is None else {SPLIT_COLUMN: split})}
    selected = _select(table, conditions)
    prompts = table.column(_prompt_column(table, prompt_column))
    measure, parse = _length_column(table, length_column, answer_column)
    guessed = length_column is None and parse is _length
    cells = table.column(measure)
    sampled = table.column(SAMPLES_COLUMN) if guessed and SAMPLES_COLUMN in table.names else None
    if parse is _answer and count_tokens is None:
        raise InputError(
            f"{table.path}: column {measure!r} holds answers as text, and there is no tokenizer "
            "to count their tokens"
        )

    counted = next((name for name in PROMPT_TOKENS_COLUMNS if name in table.names), None)
    counts = table.column(counted) if prompt_tokens and counted is not None else None

    rows: list[int] = []
    kept: list[tuple[str, Any, NDArray[np.int64] | None, int]] = []
    rejected = list(table.unreadable)
    for row in selected:
        if len(rows) == limit:
            break
        try:
            kept.append(
                (
                    _prompt(prompts[row]),
                    parse(cells[row], measure),
                    None if sampled is None else _samples(sampled[row]),
                    0 if counts is None else _prompt_length(counts[row], counted or ""),
                )
            )
            rows.append(row)
        except _MalformedError as error:
            rejected.append(Rejection(table.numbers[row], str(error)))
    if not rows:
        first = rejected[0]
        raise InputError(
            f"{table.path}: none of {len(rejected)} rows is usable; row {first.row}: {first.reason}"
        )
    lengths = [length for _, length, _, _ in kept]
    if parse is _answer and count_tokens is not None:
        lengths = count_tokens(lengths)
    return Dataset(
        name=table.path.name,
        prompts=[prompt for prompt, _, _, _ in kept],
        lengths=np.array(lengths, dtype=np.int64),
        samples=None if sampled is None else [x for _, _, x, _ in kept if x is not None],
        rows=np.array([table.numbers[row] for row in rows], dtype=np.int64),
        rejected=rejected,
        model=_model(table, rows),
        selection=_in_words(conditions, limit),
        tasks=_texts(table, rows, *TASK_COLUMNS),
        systems=_texts(table, rows, SYSTEM_COLUMN),
        tenants=_texts(table, rows, TENANT_COLUMN),
        loras=_texts(table, rows, LORA_COLUMN),
        prompt_tokens=None
        if counts is None
        else np.array([count for _, _, _, count in kept], dtype=np.int64),
        prompt_tokens_column=None if counts is None else counted,
    )


def load_prompts(
    path: str | Path, *, prompt_column: str | None = None, limit: int | None = None
) -> tuple[list[str], list[Rejection]]:
    """Read prompts alone; see `load_dataset`.

    Returns:
        The sound ones, in the order of the file, and the malformed rows among them.

    Raises:
        InputError: no such file, not a table, no such column, or no sound row is left.
    """
    table = read_table(Path(path))
    prompts: list[str] = []
    rejected = list(table.unreadable)
    for number, cell in zip(
        table.numbers, table.column(_prompt_column(table, prompt_column)), strict=True
    ):
        if len(prompts) == limit:
            break
        try:
            prompts.append(_prompt(cell))
        except _MalformedError as error:
            rejected.append(Rejection(number, str(error)))
    if not prompts:
        raise InputError(
            f"{table.path}: none of {len(rejected)} rows is usable; row {rejected[0].row}: "
            f"{rejected[0].reason}"
        )
    return prompts, rejected


def _select(table: Table, conditions: Mapping[str, str]) -> list[int]:
    """The places of the rows that meet all conditions."""
    chosen = list(range(len(table.numbers)))
    for name, value in conditions.items():
        cells = table.column(name)
        found = [row for row in chosen if str(cells[row]) == value]
        if not found and chosen:
            there = sorted({str(cells[row]) for row in chosen})
            listed = ", ".join(there[:10]) + (", …" if len(there) > 10 else "")
            raise InputError(f"{table.path}: no row has {name}={value}: there are {listed}")
        chosen = found
    return chosen


def _prompt_column(table: Table, wanted: str | None) -> str:
    """The column of prompts: the one that was asked for, or the first guess that is there."""
    if wanted is not None:
        return wanted
    for name in PROMPT_COLUMNS:
        if name in table.names:
            return name
    raise InputError(
        f"{table.path}: no column of prompts found; the columns are {', '.join(table.names)}: "
        "name one with --prompt-column"
    )


def _length_column(
    table: Table, length_column: str | None, answer_column: str | None
) -> tuple[str, Callable[[Any, str], Any]]:
    """The column that says how long answers were, and how to read its cells."""
    if length_column is not None:
        return length_column, _length
    if answer_column is not None:
        return answer_column, _answer
    for name in LENGTH_COLUMNS:
        if name in table.names:
            return name, _length
    for name in ANSWER_COLUMNS:
        if name in table.names:
            return name, _answer
    raise InputError(
        f"{table.path}: no column of answer lengths found; the columns are "
        f"{', '.join(table.names)}: name one with --length-column (tokens) or --answer-column "
        "(text)"
    )


class _MalformedError(Exception):
    """A cell that cannot be what it should be; the message says why."""


def _prompt(cell: Any) -> str:
    if isinstance(cell, list):
        contents = [
            part.get("content", part.get("value")) if isinstance(part, dict) else None
            for part in cell
        ]
        if not contents or not all(isinstance(content, str) for content in contents):
            raise _MalformedError("the prompt is a list, but not of messages with a text content")
        cell = "\n\n".join(str(content) for content in contents)
    if not isinstance(cell, str):
        raise _MalformedError("there is no prompt" if cell is None else "the prompt is not text")
    if not cell.strip():
        raise _MalformedError("the prompt is empty")
    return cell


def _answer(cell: Any, column: str) -> str:
    if not isinstance(cell, str):
        raise _MalformedError(f"{column} is not text")
    return cell


def _length(cell: Any, column: str) -> int:
    number = cell
    if isinstance(cell, str):
        try:
            number = float(cell)
        except ValueError:
            number = None
    if number is None or isinstance(number, bool) or not isinstance(number, int | float):
        shown = "missing" if cell is None or cell == "" else f"{cell!r}, not a number"
        raise _MalformedError(f"{column} is {shown}")
    if number < 0:
        raise _MalformedError(f"{column} is negative: {cell}")
    if number > _LONGEST:
        raise _MalformedError(f"{column} is too large to be a number of tokens")
    if math.isnan(number):
        raise _MalformedError(f"{column} is NaN")
    if number != int(number):
        raise _MalformedError(f"{column} is not a whole number of tokens: {cell}")
    return int(number)


def _prompt_length(cell: Any, column: str) -> int:
    length = _length(cell, column)
    if length == 0:
        raise _MalformedError(f"{column} is 0: a prompt has at least one token")
    return length


def _samples(cell: Any) -> NDArray[np.int64]:
    if not isinstance(cell, list) or not cell:
        raise _MalformedError(f"{SAMPLES_COLUMN} is not a list of lengths")
    return np.array([_length(length, SAMPLES_COLUMN) for length in cell], dtype=np.int64)


def _model(table: Table, rows: Sequence[int]) -> str | None:
    """The model that all rows name, if they do."""
    if MODEL_COLUMN not in table.names:
        return None
    cells = table.column(MODEL_COLUMN)
    models = {cells[row] for row in rows}
    name = models.pop()
    return name if not models and isinstance(name, str) else None


def _texts(table: Table, rows: Sequence[int], *columns: str) -> list[str] | None:
    """The cells of the first of these columns that the table has, "" where one is missing."""
    for name in columns:
        if name in table.names:
            cells = table.column(name)
            return ["" if cells[row] is None else str(cells[row]) for row in rows]
    return None


def _in_words(conditions: Mapping[str, str], limit: int | None) -> str:
    parts = [f"{name}={value}" for name, value in conditions.items()]
    if limit is not None:
        parts.append(f"the first {limit}")
    return ", ".join(parts) or "all rows"
