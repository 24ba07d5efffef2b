"""A whole table in memory, column by column; see records.py for files that are too large for it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.workload.documents import Record
from lengthwise.workload.records import open_records
from lengthwise.workload.rejections import Rejection, require_column


@dataclass(frozen=True)
class Table:
    """The rows of a file."""

    path: Path
    names: list[str]  #: of the columns
    numbers: list[int]  #: the row number in the file, from 1, of each row
    unreadable: list[Rejection]  #: rows that could not even be parsed
    records: list[Record]  #: the rows

    def column(self, name: str) -> list[Any]:
        """The cells of a column, None where a row has none.

        Raises:
            InputError: there is no such column.
        """
        require_column(self.path, self.names, name)
        return [record.get(name) for record in self.records]


def read_table(path: Path) -> Table:
    """Read a table; its kind is told by its suffix.

    Raises:
        InputError: the file is missing, of another kind, unreadable or has no rows.
    """
    file = open_records(path)
    table = Table(path, file.names, [], [], [])
    for row in file:
        if isinstance(row, Rejection):
            table.unreadable.append(row)
        else:
            table.numbers.append(row[0])
            table.records.append(row[1])
    return table
