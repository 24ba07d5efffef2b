"""Prompts and how long their answers were, from a file on disk.

The columns of a data set grow row by row. A malformed row is left out, and kept on a list with the
reason; a sound row that teaches nothing is counted by reason. Which part of the data a prompt
belongs to, for training or for a test, it decides itself, in every table alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload.conversation import NOTHING, USER, Chat, Facts, Turns
from lengthwise.workload.exchanges import (
    LORA_COLUMN,
    SYSTEM_COLUMNS,
    TENANT_COLUMN,
    Columns,
    Exchanges,
    Row,
)
from lengthwise.workload.prompt_layouts.named_columns import PROMPT_TOKENS_COLUMNS
from lengthwise.workload.records import Rejection, refuse_rejected

MODEL_COLUMN: Final = "model"  #: whose answers they are
TASK_COLUMNS: Final = ("task", "category", "dataset")  #: what kind of prompt it is
SPLIT_COLUMN: Final = "split"
TRAIN: Final = 0
VALID: Final = 1
TEST: Final = 2
SPLITS: Final = ("train", "valid", "test")  #: their names, in that order

_COUNTED_AT_ONCE: Final = 2_000  # answers
_REPORTED: Final = 5_000  # prompts between two reports of progress

CountTokens = Callable[[list[str]], list[int]]  #: texts -> tokens of each

T = TypeVar("T")


class GrowingDataset:
    """The columns of a data set as they grow."""

    def __init__(self, names: Sequence[str], count_tokens: CountTokens | None) -> None:
        self.rows: list[int] = []
        self.prompts: list[str] = []
        self.chats: list[Chat | None] = []
        self.facts: list[Facts] = []
        self.prompt_tokens: list[int | None] = []
        self.models: set[str | None] = set()
        task = next((name for name in TASK_COLUMNS if name in names), None)
        self._system = next((name for name in SYSTEM_COLUMNS if name in names), None)
        self._columns: dict[str, list[str]] = {
            name: []
            for name in (task, self._system, TENANT_COLUMN, LORA_COLUMN)
            if name is not None and name in names
        }
        self._task = task
        self._count_tokens = count_tokens
        self._tokens: list[int | None] = []
        self._samples: list[NDArray[np.int64] | None] = []
        self._uncounted: dict[int, tuple[str, ...]] = {}  # answers' texts, by place

    @property
    def tasks(self) -> list[str] | None:
        """What kind of prompt each is; None where the table does not say."""
        return self._columns.get(self._task or "")

    @property
    def systems(self) -> list[str] | None:
        """System prompts; None where the table does not say."""
        return self._columns.get(self._system or "")

    @property
    def tenants(self) -> list[str] | None:
        """Who sent each; None where the table does not say."""
        return self._columns.get(TENANT_COLUMN)

    @property
    def loras(self) -> list[str] | None:
        """The adapter that each is sent to; None where the table does not say."""
        return self._columns.get(LORA_COLUMN)

    def add(self, row: Row) -> None:
        """Take in another row."""
        exchange = row.exchange
        place = len(self.rows)
        self.rows.append(row.number)
        self.prompts.append(exchange.prompt)
        self.chats.append(exchange.chat)
        self.facts.append(exchange.facts)
        self.prompt_tokens.append(exchange.prompt_tokens)
        model = row.record.get(MODEL_COLUMN)
        self.models.add(model if isinstance(model, str) else None)
        for name, cells in self._columns.items():
            cell = row.record.get(name)
            cells.append("" if cell is None else str(cell))
        self._tokens.append(exchange.tokens)
        self._samples.append(exchange.samples)
        if exchange.tokens is None or exchange.other_answers:
            self._uncounted[place] = (exchange.answer or "", *exchange.other_answers)
            if len(self._uncounted) == _COUNTED_AT_ONCE:
                self._count()

    def lengths(self) -> tuple[NDArray[np.int64], list[NDArray[np.int64]] | None]:
        """Tokens of each answer, and of all answers where a prompt has several."""
        self._count()
        lengths = np.array(self._tokens, dtype=np.int64)
        if all(sample is None for sample in self._samples):
            return lengths, None
        return lengths, [
            lengths[place : place + 1] if sample is None else sample
            for place, sample in enumerate(self._samples)
        ]

    def _count(self) -> None:
        """Count what is not yet: texts of answers are not kept longer than that."""
        texts = [text for answers in self._uncounted.values() for text in answers]
        counts = iter(self._count_tokens(texts) if texts and self._count_tokens else ())
        for place, answers in self._uncounted.items():
            found = [next(counts) for _ in answers]
            if self._tokens[place] is None:
                self._tokens[place] = found[0]
            if len(found) > 1:
                self._samples[place] = np.array(found, dtype=np.int64)
        self._uncounted.clear()


@dataclass(frozen=True)
class Dataset:
    """The rows that were asked for and are sound, in the order of the file."""

    name: str  #: the file's name
    prompts: list[str]  #: of a conversation, what is asked last
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
    facts: list[Facts] | None = None  #: what requests say beside their prompts, where rows say it
    chats: list[Chat | None] | None = None  #: whole prompts, where they are conversations
    layout: str = "columns"  #: how the file was read
    holding_answers: int = 0  #: prompts among these that seem to hold their own answers
    left_out: Mapping[str, int] = field(default_factory=dict)  #: sound, but of no use: by reason

    def first(self, count: int) -> Dataset:
        """The same, of the first rows only."""
        part = self.of(np.arange(min(count, len(self.prompts))))
        return replace(part, selection=f"{self.selection}, the first {count}")

    def sample(self, count: int | None, seed: int) -> Dataset:
        """The same, of so many rows in random order; of all where there are fewer, or with None."""
        order = np.random.default_rng(seed).permutation(len(self.prompts))
        return self.of(order[:count])

    def of(self, places: NDArray[np.int64]) -> Dataset:
        """The same, of the rows at some places only, in that order."""
        return replace(
            self,
            prompts=_at(self.prompts, places),
            lengths=self.lengths[places],
            samples=self.samples and _at(self.samples, places),
            rows=self.rows[places],
            tasks=self.tasks and _at(self.tasks, places),
            systems=self.systems and _at(self.systems, places),
            tenants=self.tenants and _at(self.tenants, places),
            loras=self.loras and _at(self.loras, places),
            prompt_tokens=None if self.prompt_tokens is None else self.prompt_tokens[places],
            facts=self.facts and _at(self.facts, places),
            chats=self.chats and _at(self.chats, places),
        )

    def account(self) -> Iterator[str]:
        """How the file was read, and which of its rows were not taken, by reason, a line each."""
        yield f"{self.name}, read as {self.layout}: {len(self.prompts):,} prompts"
        for reason, count in self.left_out.items():
            yield f"  left out {count:,}: {reason}"
        if self.rejected:
            yield f"  left out {len(self.rejected):,} malformed rows:"
            for rejection in self.rejected[:5]:
                yield f"    row {rejection.row}: {rejection.reason}"

    def refuse_rejected(self) -> None:
        """Raise an InputError if any row was malformed, naming the first."""
        refuse_rejected(self.name, self.rejected, "table")


def parse_where(conditions: Sequence[str] | None) -> dict[str, str]:
    """Columns and the values that they must have, from `COLUMN=VALUE` each.

    Raises:
        InputError: a condition without an equals sign.
    """
    parsed: dict[str, str] = {}
    for condition in conditions or ():
        column, equals, value = condition.partition("=")
        if not equals or not column:
            raise InputError(
                f"--where {condition}: give COLUMN=VALUE, for example --where model=my-model"
            )
        parsed[column] = value
    return parsed


def _at(cells: Sequence[T], places: NDArray[np.int64]) -> list[T]:
    return [cells[place] for place in places.tolist()]


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
    turns: Turns = Turns.ALL,
    quotes: bool = False,
    prompts: Path | None = None,
    refuses: Callable[[Chat], str | None] | None = None,
    progress: Callable[[int], None] | None = None,
) -> Dataset:
    """Read prompts and the lengths of their answers.

    Args:
        path: a .parquet, .jsonl, .json or .csv file, packed with .gz or .zst or not, in one of the
            layouts of `prompt_layouts`, or with a column of prompts and one of answers.
        prompt_column: text, or a list of chat messages, which is cut where the answer begins. None:
            as the layout says, or the first of PROMPT_COLUMNS that the table has.
        length_column: tokens of the answer; several, separated by commas, are those of several
            answers to the prompt, the first of which is served. None: as the layout says, or the
            first of LENGTH_COLUMNS that the table has, unless `answer_column` is given; a column
            "samples" is then read as well.
        answer_column: the answer's text, to be counted by `count_tokens`. None: as the layout says,
            or the first of ANSWER_COLUMNS, where there is no length column.
        split: keep rows whose column "split" is this.
        where: keep rows whose columns have these values, compared as text.
        limit: keep at most so many sound rows, the first ones.
        count_tokens: how many tokens each of a list of texts has.
        prompt_tokens: read how many tokens the prompts have, too, from the first of
            PROMPT_TOKENS_COLUMNS, where the table has one.
        turns: which answers of a conversation are rows.
        quotes: keep rows whose prompts hold their own answers.
        prompts: the file of the prompts, where this one has only answers.
        refuses: why the model could not be asked a conversation; None where it could.
        progress: called now and then with the number of prompts read.

    Raises:
        InputError: no such file, not a table, a column or a row that was asked for is not there,
            no sound row is left, or prompts cannot be told from answers.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit of rows must be at least 1, not {limit}")
    path = Path(path)
    conditions = {**(where or {}), **({} if split is None else {SPLIT_COLUMN: split})}
    exchanges = Exchanges(
        path,
        Columns(prompt_column, length_column, answer_column),
        turns=turns,
        where=conditions,
        quotes=quotes,
        prompt_tokens=prompt_tokens,
        prompts=prompts,
        refuses=refuses,
    )
    kept = GrowingDataset(exchanges.names, count_tokens)
    for row in exchanges:
        if row.exchange.tokens is None and row.exchange.samples is None and count_tokens is None:
            raise InputError(
                f"{path}: {exchanges.layout.answer} holds answers as text, and there is no "
                "tokenizer to count their tokens"
            )
        kept.add(row)
        if progress is not None and len(kept.rows) % _REPORTED == 0:
            progress(len(kept.rows))
        if len(kept.rows) == limit:
            break
    exchanges.check()
    rejected = exchanges.tally.rejected
    if not kept.rows:
        raise InputError(f"{path}: {exchanges.why_nothing()}")
    lengths, samples = kept.lengths()
    counted = next((name for name in PROMPT_TOKENS_COLUMNS if name in exchanges.names), None)
    has_counts = prompt_tokens and all(count is not None for count in kept.prompt_tokens)
    return Dataset(
        name=path.name,
        prompts=kept.prompts,
        lengths=lengths,
        samples=samples,
        rows=np.array(kept.rows, dtype=np.int64),
        rejected=rejected,
        model=kept.models.pop() if len(kept.models) == 1 else None,
        selection=_in_words(conditions, limit, turns, any(kept.chats)),
        tasks=kept.tasks,
        systems=kept.systems,
        tenants=kept.tenants,
        loras=kept.loras,
        prompt_tokens=np.array(kept.prompt_tokens, dtype=np.int64) if has_counts else None,
        prompt_tokens_column=(counted or exchanges.layout.name) if has_counts else None,
        facts=_told(kept.facts, lengths),
        chats=kept.chats if any(kept.chats) else None,
        layout=exchanges.layout.name,
        holding_answers=exchanges.tally.holding if quotes else 0,
        left_out=dict(exchanges.tally.left_out.most_common()),
    )


def _told(facts: list[Facts], lengths: NDArray[np.int64]) -> list[Facts] | None:
    """The facts, if there are any.

    Limits that most answers reach to the token are the lengths of a replay: they are left out.
    """
    limits = np.array([each.most_tokens for each in facts])
    if 2 * (limits[limits > 0] == lengths[limits > 0]).sum() > (limits > 0).sum():
        facts = [each._replace(most_tokens=0) for each in facts]
    return facts if any(each != NOTHING for each in facts) else None


def _in_words(
    conditions: Mapping[str, str], limit: int | None, turns: Turns, has_turns: bool
) -> str:
    parts = [f"{name}={value}" for name, value in conditions.items()]
    if limit is not None:
        parts.append(f"the first {limit}")
    if has_turns and turns is not Turns.ALL:
        parts.append(f"the {turns} answer of each conversation")
    return ", ".join(parts) or "all rows"


def split_of(prompt: str) -> int:
    """TRAIN for about 80 of 100 prompts, VALID for 10, TEST for 10.

    The same prompt, whatever its case and white space, is always in the same part: what is trained
    on never comes back in a test.
    """
    place = int.from_bytes(digest_of(prompt), "little") % 10
    return {8: VALID, 9: TEST}.get(place, TRAIN)


def digest_of(prompt: str) -> bytes:
    """The same for the same prompt, whatever its case and white space."""
    normalised = " ".join(prompt.casefold().split())
    return hashlib.blake2b(normalised.encode(errors="surrogatepass"), digest_size=8).digest()


def first_words(table: Dataset) -> list[str]:
    """What each prompt begins with: rows of one conversation begin with the same."""
    chats = table.chats or [None] * len(table.prompts)
    return [
        prompt if chat is None else _first_question(chat)
        for prompt, chat in zip(table.prompts, chats, strict=True)
    ]


def _first_question(chat: Chat) -> str:
    """What the user says first, and what stands ahead of it."""
    messages = chat.messages()
    asked = [place for place, message in enumerate(messages) if message.role == USER]
    end = asked[0] + 1 if asked else len(messages)
    return "\n".join(message.content for message in messages[:end])
