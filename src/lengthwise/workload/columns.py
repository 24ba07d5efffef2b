"""Read the columns of a large table part by part, as Arrow arrays: parquet, JSONL or CSV.

`records.py` gives every row as a Python object, which suits prompts; of a trace a million rows are
read here in about a second, because their cells are never taken apart, and no more than a few
hundred thousand are held at a time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.workload.rejections import Rejection

_RECORDS: Final = 1 << 14  # of rows that go through Python


@dataclass(frozen=True)
class Columns:
    """The columns of n rows of a file."""

    path: Path
    names: list[str]
    numbers: NDArray[np.int64]  # shape (n,), row numbers in the file, from 1, without a CSV header
    unreadable: list[Rejection]  # rows that could not even be parsed
    read: Callable[[str], Any]  # name -> pyarrow.Array of shape (n,); CSV cells are strings

    def cells(self, name: str) -> Any:
        """The cells of a column, shape (n,); nulls where these rows have none of that name."""
        import pyarrow

        return self.read(name) if name in self.names else pyarrow.nulls(len(self.numbers))


@dataclass(frozen=True)
class ColumnParts:
    """A table whose rows come in parts, read from its start each time it is iterated."""

    path: Path
    names: list[str]
    parts: Callable[[], Iterator[Columns]]

    def __iter__(self) -> Iterator[Columns]:
        """The parts in order."""
        return self.parts()


def columns_of_records(
    path: Path, rows: Iterator[tuple[int, dict[str, Any]] | Rejection]
) -> Iterator[Columns]:
    """Rows as columns, part by part; every cell is text, as in CSV.

    Args:
        path: where they are from.
        rows: with their numbers, or why they could not be read.
    """
    while chunk := list(itertools.islice(rows, _RECORDS)):
        yield columns_of_rows(path, chunk)


def columns_of_rows(path: Path, rows: Sequence[tuple[int, dict[str, Any]] | Rejection]) -> Columns:
    """Numbered rows as the columns of one part; every cell is text."""
    import pyarrow

    sound = [row for row in rows if not isinstance(row, Rejection)]
    return Columns(
        path=path,
        names=list(dict.fromkeys(name for _, record in sound for name in record)),
        numbers=np.array([number for number, _ in sound], dtype=np.int64),
        unreadable=[row for row in rows if isinstance(row, Rejection)],
        read=lambda name: pyarrow.array(
            [cell_text(record.get(name)) for _, record in sound], pyarrow.string()
        ),
    )


def cell_text(cell: Any) -> str | None:
    """A cell as CSV would have it; None for none."""
    if cell is None:
        return None
    text = cell if isinstance(cell, str) else json.dumps(cell)
    return text.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair
