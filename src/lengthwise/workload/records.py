"""The rows of a table as dictionaries, one by one or all at once: parquet, JSONL, JSON and CSV.

No file is held in memory whole, but for a JSON file that is a single object (see `file_kinds.py`).
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from lengthwise.errors import InputError
from lengthwise.workload.file_kinds import (
    Record,
    kind_of,
    open_bytes,
    open_parquet,
    rows_of,
    unreadable,
)
from lengthwise.workload.rejections import Rejection, require_column

_HEAD: Final = 1_000  # rows whose keys are the columns of a file of JSON
_PARQUET_ROWS: Final = 1_024  # read at a time
_LARGEST_DOCUMENT: Final = 2**30  # bytes of a JSON file that is one object

Numbered = tuple[int, Record]  # the row's number in the file, from 1, without a CSV header


@dataclass(frozen=True)
class Records:
    """A table, read from its start each time it is iterated."""

    path: Path
    names: list[str]  #: of the columns
    head: Sequence[Record]  #: its first rows

    def __iter__(self) -> Iterator[Numbered | Rejection]:
        """Its rows in order; a Rejection for one that could not even be parsed."""
        yield from _rows(self.path)


def open_records(path: Path) -> Records:
    """Open a table by its suffix.

    Raises:
        InputError: the file is missing, of another kind, unreadable or has no rows.
    """
    rows = _rows(path)
    first = list(itertools.islice(rows, _HEAD))
    rows.close()
    if not first:
        raise InputError(f"{path}: the table is empty: it has no rows")
    head = [row[1] for row in first if not isinstance(row, Rejection)]
    names = list(dict.fromkeys(name for record in head for name in record))
    return Records(path, names, head)


def _rows(path: Path) -> Any:  # a generator of Numbered | Rejection
    readers = {".parquet": _parquet, ".jsonl": _jsonl, ".json": _json, ".csv": _csv}
    yield from readers[kind_of(path).suffix](path)


def _parquet(path: Path) -> Iterator[Numbered]:
    with open_parquet(path) as file:
        batches = file.iter_batches(_PARQUET_ROWS)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def _csv(path: Path) -> Iterator[Numbered]:
    # Answers and prompts may be longer than the module's default of 128 KiB a cell.
    csv.field_size_limit(2**31 - 1)
    with open_bytes(path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            yield from enumerate(csv.DictReader(lines), 1)
        except csv.Error as error:
            raise InputError(f"{path}: not a readable CSV file: {error}") from None


def _jsonl(path: Path) -> Iterator[Numbered | Rejection]:
    with open_bytes(path) as stream:
        yield from _lines(stream)


def _lines(stream: BinaryIO) -> Iterator[Numbered | Rejection]:
    for number, line in enumerate(io.TextIOWrapper(stream, encoding="utf-8-sig"), start=1):
        if line.strip():
            yield parse_line(number, line)


def parse_line(number: int, line: str) -> Numbered | Rejection:
    """A line of JSONL as a row."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        return Rejection(number, f"not JSON: {error}")
    return _checked(number, record)


def _checked(number: int, record: Any) -> Numbered | Rejection:
    if isinstance(record, dict):
        return number, record
    return Rejection(number, "not a JSON object")


def _json(path: Path) -> Iterator[Numbered | Rejection]:
    """A list of objects, one object, or, as many such files are, JSONL after all."""
    with open_bytes(path) as stream:
        peeked = io.BufferedReader(stream, 1 << 20)  # type: ignore[type-var]
        if peeked.peek(3).startswith(b"\xef\xbb\xbf"):  # the mark that Windows puts first
            peeked.read(3)
        if peeked.peek(1).lstrip()[:1] == b"[":
            yield from _array(path, peeked)
            return
        # The first line of JSONL is a whole object, and another line follows.
        first = peeked.readline()
        second = peeked.readline()
        while second and not second.strip():
            second = peeked.readline()
        whole = parse_line(1, first.decode())
        if second and not isinstance(whole, Rejection):
            rest = itertools.chain([second], peeked)
            yield whole
            for number, line in enumerate(rest, start=2):
                if line.strip():
                    yield parse_line(number, line.decode())
            return
        text = first + second + peeked.read(_LARGEST_DOCUMENT)
    if len(text) > _LARGEST_DOCUMENT:
        raise InputError(
            f"{path}: a JSON file that is one object may have {_LARGEST_DOCUMENT >> 30} GiB: "
            "save it as a list of objects, or as JSONL with one a line"
        )
    try:
        document = json.loads(text)
    except (ValueError, RecursionError) as error:
        if not text.strip():
            return
        raise unreadable(path, error) from None
    rows = rows_of(document) if isinstance(document, dict) else [document]
    yield from itertools.starmap(_checked, enumerate(rows, start=1))


def _array(path: Path, stream: Any) -> Iterator[Numbered | Rejection]:
    import ijson

    done = 0
    try:
        for done, row in enumerate(ijson.items(stream, "item", use_float=True), start=1):
            yield _checked(done, row)
    except ijson.JSONError as error:
        # Python and pandas write NaN and Infinity, which are no JSON: read slowly then.
        yield from itertools.islice(_lenient_array(path, error), done, None)


def _lenient_array(path: Path, error: Exception) -> Iterator[Numbered | Rejection]:
    """The rows of a list of objects that has NaN in it, read at once.

    Raises:
        InputError: something else is wrong with it, as `error` says.
    """
    with open_bytes(path) as stream:
        text = stream.read(_LARGEST_DOCUMENT + 1)
    try:
        document = json.loads(text.decode("utf-8-sig")) if len(text) <= _LARGEST_DOCUMENT else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, list):
        raise unreadable(path, error) from None
    yield from itertools.starmap(_checked, enumerate(document, start=1))


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
