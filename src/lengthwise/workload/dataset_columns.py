"""The columns of a data set as they grow, row by row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.workload.conversation import Chat
from lengthwise.workload.exchanges import LORA_COLUMN, SYSTEM_COLUMNS, TENANT_COLUMN, Row
from lengthwise.workload.request_facts import Facts

MODEL_COLUMN: Final = "model"  #: whose answers they are
TASK_COLUMNS: Final = ("task", "category", "dataset")  #: what kind of prompt it is
_COUNTED_AT_ONCE: Final = 2_000  # answers

CountTokens = Callable[[list[str]], list[int]]  #: texts -> tokens of each


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
