"""Prompts without their answers, from a file that may have none."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from lengthwise.errors import InputError
from lengthwise.workload.conversation import USER, Chat, MalformedError
from lengthwise.workload.exchanges import Exchanges
from lengthwise.workload.prompt_layouts import recognise
from lengthwise.workload.prompt_layouts.named_columns import ColumnNames, choose_prompt_column
from lengthwise.workload.records import open_records
from lengthwise.workload.rejections import Rejection


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
