"""From a file to its prompts and answers, one by one, or to its prompts alone.

Every row of a file is an exchange, which `load_dataset` keeps and `inspect` counts, or is counted:
as malformed where something in it cannot be what it should be (a mistake to mend), or as left out
where it is sound and teaches nothing (a dialogue without an answer, a request that failed, a prompt
that holds its own answer). Prompts alone come from a file that may have no answers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from lengthwise.errors import InputError
from lengthwise.workload.conversation import (
    NOTHING,
    USER,
    Chat,
    Facts,
    MalformedError,
    Turns,
    facts_of,
)
from lengthwise.workload.leaks import (
    find_leak,
    has_a_heading_of_an_answer,
    is_rendered_with_an_answer,
)
from lengthwise.workload.prompt_layouts import recognise
from lengthwise.workload.prompt_layouts.benchmarks import with_prompts
from lengthwise.workload.prompt_layouts.layout import Exchange, PromptLayout
from lengthwise.workload.prompt_layouts.named_columns import (
    ColumnNames,
    choose_prompt_column,
    name_columns,
    plain_layout,
)
from lengthwise.workload.records import (
    Record,
    Records,
    Rejection,
    cell_is,
    open_records,
    require_column,
)

SYSTEM_COLUMNS: Final = ("system", "system_prompt")  #: ahead of the user's prompt
TENANT_COLUMN: Final = "tenant"  #: who sends the prompt
LORA_COLUMN: Final = "lora"  #: the adapter that it is sent to
#: what a predictor sees of a row
SEEN_COLUMNS: Final = (*SYSTEM_COLUMNS, TENANT_COLUMN, LORA_COLUMN)
HOLDS_ANSWER: Final = "the prompt holds its own answer"
_RENDERED: Final = "the prompt goes on after its template begins an answer"
_HEADED: Final = "the prompt goes on after a line such as 'Response:'"
_SHOWN_CHARACTERS: Final = 3  #: of a token, at least, in a text of some length
_ANY_TEXT: Final = ("text", "content")  #: columns that hold prompts and answers in one, mostly


class Row(NamedTuple):
    """An exchange and where it is from."""

    number: int  #: of the row in the file, from 1
    record: Record
    exchange: Exchange


@dataclass(frozen=True)
class Columns:
    """What was said of a table: columns by name, instead of what its layout would say."""

    prompt: str | None = None
    length: str | None = None
    answer: str | None = None


@dataclass
class Tally:
    """What became of the rows that were read so far."""

    records: int = 0
    rejected: list[Rejection] = field(default_factory=list)  #: malformed
    left_out: Counter[str] = field(default_factory=Counter)  #: by reason
    holding: int = 0  #: exchanges whose prompts seem to hold their own answers
    answered: int = 0  #: exchanges whose answers are there as text
    ending: int = 0  #: those among them whose prompts end with them
    headings: int = 0  #: exchanges whose prompts have a heading of an answer
    too_short: int = 0  #: exchanges whose prompts could not hold an answer of the length given
    exchanges: int = 0  #: all exchanges, those that hold their answers included


class Exchanges:
    """The prompts and answers of a file.

    Attributes:
        path: the file.
        layout: how it is read.
        tally: what became of the rows, as far as they were read.
    """

    def __init__(
        self,
        path: Path,
        columns: Columns | None = None,
        *,
        turns: Turns = Turns.ALL,
        where: Mapping[str, str] | None = None,
        quotes: bool = False,
        prompt_tokens: bool = False,
        prompts: Path | None = None,
        refuses: Callable[[Chat], str | None] | None = None,
    ) -> None:
        """Open a file and tell its layout.

        Args:
            path: the file.
            columns: names of columns, for a table of any layout.
            turns: which answers of a conversation are read.
            where: only rows whose columns have these values, compared as text.
            quotes: keep prompts that hold their own answers.
            prompt_tokens: read how many tokens prompts have, where a column says.
            prompts: the file of the prompts, where this one has none.
            refuses: why the model could not be asked a conversation, None where it could.

        Raises:
            InputError: no such file, not a table, no prompts or no answers in it.
        """
        columns = columns or Columns()
        self._records: Records = open_records(path)
        self.path = path
        self.layout = _layout(self._records, columns, prompt_tokens, prompts)
        self.tally = Tally()
        self._turns, self._quotes, self._refuses = turns, quotes, refuses
        self._where = dict(where or {})
        self._seen: list[Counter[str]] = []
        self._any_text = self.layout.prompt in _ANY_TEXT and columns.prompt is None
        for name in self._where:
            require_column(path, self._records.names, name)

    @property
    def names(self) -> list[str]:
        """The columns."""
        return self._records.names

    @property
    def head(self) -> list[Record]:
        """The first rows, as they are in the file."""
        return list(self._records.head)

    def __iter__(self) -> Iterator[Row]:
        """The exchanges in the order of the file; `check` when they were read."""
        tally = self.tally = Tally()
        seen = self._seen = [Counter() for _ in self._where]
        for row in self._records:
            tally.records += 1
            if isinstance(row, Rejection):
                tally.rejected.append(row)
                continue
            number, record = row
            if not _selected(record, self._where, seen):
                continue
            for exchange in self._read(number, record):
                yield Row(number, record, exchange)

    def why_nothing(self) -> str:
        """That no row is left, and why the first, or the most, were not kept."""
        tally = self.tally
        if tally.rejected:
            first = tally.rejected[0]
            return f"none of {tally.records} rows is usable; row {first.row}: {first.reason}"
        reasons = ", ".join(f"{why} ({count:,})" for why, count in tally.left_out.most_common(3))
        return (
            f"none of {tally.records} rows, read as {self.layout.name}, has something to learn "
            f"from: {reasons or 'there are none'}"
        )

    def check(self) -> None:
        """Look at all that was read.

        Raises:
            InputError: no row has the values that were asked for, or prompts cannot be told from
                answers.
        """
        for (name, value), found in zip(self._where.items(), self._seen, strict=True):
            if found and value not in found:
                there = sorted(found)
                listed = ", ".join(there[:10]) + (", …" if len(there) > 10 else "")
                raise InputError(f"{self.path}: no row has {name}={value}: there are {listed}")
        if not self._quotes:
            self._refuse_mixed()

    def _read(self, number: int, record: Record) -> Iterator[Exchange]:
        tally = self.tally
        try:
            beside = tuple(
                cell
                for name in SEEN_COLUMNS
                if isinstance(cell := record.get(name), str) and cell.strip()
            )
            for found in self.layout.read(record, self._turns):
                if isinstance(found, str):
                    tally.left_out[found] += 1
                    continue
                exchange = found._replace(beside=beside, facts=_facts(found, record))
                reason = self._why_not(exchange)
                if reason is None:
                    yield exchange
                else:
                    tally.left_out[reason] += 1
        except MalformedError as error:
            tally.rejected.append(Rejection(number, str(error)))

    def _why_not(self, exchange: Exchange) -> str | None:
        tally = self.tally
        tally.exchanges += 1
        if exchange.chat is not None and self._refuses is not None:
            refused = self._refuses(exchange.chat)
            if refused is not None:
                return f"the chat template refuses the conversation: {refused}"
        reason = self._leak(exchange)
        tally.holding += reason is not None
        return None if self._quotes else reason

    def _leak(self, exchange: Exchange) -> str | None:
        """Where a prompt seems to have its own answer in it."""
        tally = self.tally
        if exchange.chat is None:
            if is_rendered_with_an_answer(exchange.prompt):
                return _RENDERED
            if has_a_heading_of_an_answer(exchange.prompt):
                tally.headings += 1
                if self._any_text:
                    return _HEADED
            if (
                exchange.tokens is None
                or len(exchange.prompt) < _SHOWN_CHARACTERS * exchange.tokens
            ):
                tally.too_short += 1
        if exchange.answer:
            tally.answered += 1
            leak = find_leak(exchange)
            tally.ending += leak.ends
            return HOLDS_ANSWER if leak.holds else None
        return None

    def _refuse_mixed(self) -> None:
        """Refuse a file most of whose prompts hold their answers: its reader is wrong about it."""
        tally = self.tally
        if 2 * tally.ending > tally.answered:
            raise InputError(
                f"{self.path}: {tally.ending:,} of {tally.answered:,} prompts "
                f"({self.layout.prompt}) hold their own answers, so that nothing could be learnt "
                "but to read them: name the column of the prompts alone with --prompt-column, or, "
                "if answers here are quoted from their prompts, keep them with --quotes"
            )
        if self._any_text and tally.exchanges and not tally.too_short:
            raise InputError(
                f"{self.path}: whether the column {self.layout.prompt} holds prompts alone, or "
                "answers as well, cannot be told: every text in it is long enough to hold its own "
                f"answer; if these are prompts, say so with --prompt-column {self.layout.prompt}"
            )
        if 2 * tally.headings > tally.exchanges:
            raise InputError(
                f"{self.path}: {tally.headings:,} of {tally.exchanges:,} prompts "
                f"({self.layout.prompt}) go on after a line such as 'Response:', so that prompt "
                "and answer cannot be told apart: name the column of the prompts alone with "
                "--prompt-column, or, if these are prompts, keep them with --quotes"
            )


def _facts(exchange: Exchange, record: Record) -> Facts:
    """What a request says beside its prompt: in its body, or in columns of its row."""
    said = facts_of(record) if exchange.facts == NOTHING else exchange.facts
    if exchange.chat is None:
        return said
    attached = sum(message.attachments for message in exchange.chat.messages())
    return said._replace(attachments=attached)


def _layout(
    records: Records, columns: Columns, prompt_tokens: bool, prompts: Path | None
) -> PromptLayout:
    """The layout of a table, or the columns of one that has none.

    Raises:
        InputError: there are no prompts or no answers in it.
    """
    layout = None
    if columns == Columns():
        layout = recognise(records.names, records.head)
        if layout is not None and layout.no_prompts:
            return with_prompts(layout, records.path, prompts)
    if prompts is not None:
        raise InputError(f"{records.path} has prompts of its own: leave --prompts {prompts} out")
    if layout is not None:
        return layout
    return plain_layout(
        name_columns(
            records.path,
            records.names,
            records.head,
            prompt=columns.prompt,
            length=columns.length,
            answer=columns.answer,
            prompt_tokens=prompt_tokens,
        )
    )


def _selected(record: Record, where: Mapping[str, str], seen: list[Counter[str]]) -> bool:
    """Whether a row meets all conditions; counts what was there among those that met the first."""
    for (name, value), found in zip(where.items(), seen, strict=True):
        cell = record.get(name)
        meets = cell_is(cell, value)
        if len(found) < 1_000 or meets:
            found[value if meets else str(cell)] += 1
        if not meets:
            return False
    return True


class Prompts(NamedTuple):
    """Prompts without their answers, in the order of the file."""

    texts: list[str]  #: of a conversation, what is asked last
    chats: list[Chat | None]  #: the whole prompts, where they are conversations
    rejected: list[Rejection]  #: malformed rows

    def add(self, chat: Chat | None, text: str) -> None:
        """Put another one behind them."""
        self.chats.append(chat)
        self.texts.append(text)

    def conversations(self) -> list[list[dict[str, Any]]]:
        """All of them as chat templates want them; a text is what a user says."""
        return [
            [{"role": USER, "content": text}]
            if chat is None
            else [message.for_template() for message in chat.messages()]
            for chat, text in zip(self.chats, self.texts, strict=True)
        ]


def load_prompts(
    path: str | Path, *, prompt_column: str | None = None, limit: int | None = None
) -> Prompts:
    """Read prompts alone, of a file that may have no answers; see `load_dataset`.

    Raises:
        InputError: no such file, not a table, no such column, or no sound row is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit of rows must be at least 1, not {limit}")
    path = Path(path)
    records = open_records(path)
    layout = recognise(records.names, records.head) if prompt_column is None else None
    prompts = Prompts([], [], [])
    if layout is not None and not layout.no_prompts:
        exchanges = Exchanges(path)
        for row in exchanges:
            prompts.add(row.exchange.chat, row.exchange.prompt)
            if len(prompts.texts) == limit:
                break
        exchanges.check()
        prompts.rejected.extend(exchanges.tally.rejected)
        why = exchanges.why_nothing()
    else:
        columns = ColumnNames(choose_prompt_column(path, records.names, prompt_column))
        for each in records:
            if len(prompts.texts) == limit:
                break
            if isinstance(each, Rejection):
                prompts.rejected.append(each)
                continue
            try:
                prompts.add(*columns.prompt_of(each[1]))
            except MalformedError as error:
                prompts.rejected.append(Rejection(each[0], str(error)))
        first = prompts.rejected[0] if prompts.rejected else Rejection(0, "")
        why = f"none of {len(prompts.rejected)} rows is usable; row {first.row}: {first.reason}"
    if not prompts.texts:
        raise InputError(f"{path}: {why}")
    return prompts
