"""Read a table from a file, column by column: parquet, JSONL or CSV."""

from __future__ import annotations

import csv
import difflib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from lengthwise.errors import InputError

SUFFIXES: Final = (".parquet", ".jsonl", ".csv")


class UnknownLayoutError(InputError):
    """The columns of a file say nothing that is known, and perhaps something else in another role.

    A file without prompts may be a trace, and one without arrival times may have prompts.
    """


class UnusableError(InputError):
    """A file of a known layout that lacks something; the message says what, and what would help."""

    def __init__(self, message: str, layout: str, source: str) -> None:
        """Say what is missing.

        Args:
            message: the file, what it lacks, and what to do.
            layout: the name of the layout.
            source: whose it is, in Markdown.
        """
        super().__init__(message)
        self.layout, self.source = layout, source


class Rejection(NamedTuple):
    """A row that was left out."""

    row: int  #: its number in the file, from 1; a CSV header is not counted
    reason: str


@dataclass(frozen=True)
class Table:
    """The columns of a file, read when asked for."""

    path: Path
    names: list[str]  #: of the columns
    numbers: Sequence[int]  #: the row number in the file, from 1, of each row
    unreadable: list[Rejection]  #: rows that could not even be parsed
    read: Callable[[str], list[Any]]  #: the cells of a column that is in `names`

    def column(self, name: str) -> list[Any]:
        """The cells of a column.

        Raises:
            InputError: there is no such column.
        """
        if name not in self.names:
            near = difflib.get_close_matches(name, self.names, n=1)
            hint = f"did you mean {near[0]!r}? " if near else ""
            raise InputError(
                f"{self.path}: no column {name!r}: {hint}the columns are {', '.join(self.names)}"
            )
        return self.read(name)


def read_table(path: Path) -> Table:
    """Open a table by its suffix.

    Raises:
        InputError: the file is missing, of another kind, unreadable or has no rows.
    """
    suffix = require_table(path)
    reader = {".parquet": _read_parquet, ".jsonl": _read_jsonl, ".csv": _read_csv}[suffix]
    try:
        table = reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not table.numbers and not table.unreadable:
        raise InputError(f"{path}: the table is empty: it has no rows")
    return table


def require_table(path: Path) -> str:
    """Refuse what cannot be a table.

    Returns:
        One of SUFFIXES.

    Raises:
        InputError: the file is missing or of another kind.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a file: give a {', '.join(SUFFIXES)} file")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path}: tables are read from {', '.join(SUFFIXES)} files, "
            f"not from {path.suffix or 'files without a suffix'}"
        )
    return suffix


def _read_parquet(path: Path) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path}: not a readable parquet file: {reason}") from None
    return Table(
        path=path,
        names=list(table.column_names),
        numbers=range(1, table.num_rows + 1),
        unreadable=[],
        read=lambda name: list(table.column(name).to_pylist()),
    )


def _read_jsonl(path: Path) -> Table:
    records: list[dict[str, Any]] = []
    numbers: list[int] = []
    unreadable: list[Rejection] = []
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                unreadable.append(Rejection(number, f"not JSON: {error}"))
                continue
            if not isinstance(record, dict):
                unreadable.append(Rejection(number, "not a JSON object"))
                continue
            records.append(record)
            numbers.append(number)
    names = dict.fromkeys(name for record in records for name in record)
    return _of_records(path, list(names), records, numbers, unreadable)


def _read_csv(path: Path) -> Table:
    # Answers and prompts may be longer than the module's default of 128 KiB a cell.
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines)
            records = list(reader)
            names = list(reader.fieldnames or [])
    except csv.Error as error:
        raise InputError(f"{path}: not a readable CSV file: {error}") from None
    return _of_records(path, names, records, range(1, len(records) + 1), [])


def _of_records(
    path: Path,
    names: list[str],
    records: Sequence[dict[str, Any]],
    numbers: Sequence[int],
    unreadable: list[Rejection],
) -> Table:
    return Table(
        path=path,
        names=names,
        numbers=numbers,
        unreadable=unreadable,
        read=lambda name: [record.get(name) for record in records],
    )
