"""The columns of a large table, part by part as Arrow arrays: parquet, JSONL, CSV, or any rows.

`records.py` gives every row as a Python object, which suits prompts; of a trace a million rows are
read here in about a second, because their cells are never taken apart, and no more than a few
hundred thousand are held at a time.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload.length_log import read_answers
from lengthwise.workload.records import (
    Numbered,
    Rejection,
    kind_of,
    open_bytes,
    open_parquet,
    open_records,
    parse_line,
)

# The files of ours that hold requests; each names its schema.
_SCHEMAS: Final = ("lengthwise.requests/1", "lengthwise.records/1")
_BYTES: Final = 2 << 20  # of text that are read at a time
_ROWS: Final = 1 << 16  # of parquet, likewise
_RECORDS: Final = 1 << 14  # of rows that go through Python, likewise


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


def columns_of_records(path: Path, rows: Iterator[Numbered | Rejection]) -> Iterator[Columns]:
    """Rows as columns, part by part; every cell is text, as in CSV.

    Args:
        path: where they are from.
        rows: with their numbers, or why they could not be read.
    """
    while chunk := list(itertools.islice(rows, _RECORDS)):
        yield columns_of_rows(path, chunk)


def columns_of_rows(path: Path, rows: Sequence[Numbered | Rejection]) -> Columns:
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


def open_columns(path: Path) -> Columns:
    """All rows of a table at once; see `open_parts`.

    Raises:
        InputError: as from `open_parts`.
    """
    table = open_parts(path)
    parts = list(table)
    return Columns(
        path,
        table.names,
        np.concatenate([part.numbers for part in parts]),
        [rejection for part in parts for rejection in part.unreadable],
        lambda name: _joined([part.cells(name) for part in parts]),
    )


def open_parts(path: Path) -> ColumnParts:
    """Open a table by its suffix, or the folder of a length log.

    Raises:
        InputError: the file is missing, of another kind, unreadable or has no rows.
    """
    if path.is_dir():
        log = _length_log(path)
        return ColumnParts(path, log.names, lambda: iter([log]))
    openers = {".parquet": _open_parquet, ".csv": _open_csv, ".jsonl": _open_jsonl}
    table = openers.get(kind_of(path).suffix, _open_records)(path)
    first = next(iter(table), None)
    if first is None or (len(first.numbers) == 0 and not first.unreadable):
        raise InputError(f"{path}: the table is empty: it has no rows")
    return table


def _joined(parts: list[Any]) -> Any:
    """Arrays one after another; as text where they are of different types."""
    import pyarrow

    kinds = {part.type for part in parts}
    if len(kinds) > 1:
        cells = [cell for part in parts for cell in part.to_pylist()]
        known = {kind for kind in kinds if not pyarrow.types.is_null(kind)}
        text = any(map(pyarrow.types.is_string, known))
        return pyarrow.array(map(cell_text, cells) if text else cells)
    return pyarrow.concat_arrays(parts)


def _open_parquet(path: Path) -> ColumnParts:
    def parts() -> Iterator[Columns]:
        with open_parquet(path) as file:
            done = 0
            for batch in file.iter_batches(_ROWS):
                numbers = np.arange(done + 1, done + len(batch) + 1)
                done += len(batch)
                yield Columns(path, names, numbers, [], _reader(batch))

    with open_parquet(path) as file:
        schema = file.schema_arrow
    _require_known(path, (schema.metadata or {}).get(b"schema", b"").decode())
    names = list(schema.names)
    return ColumnParts(path, names, parts)


def _reader(batch: Any) -> Callable[[str], Any]:
    """The cells of a column of an Arrow batch, those of a dictionary written out."""
    import pyarrow

    def read(name: str) -> Any:
        column = batch.column(batch.schema.get_field_index(name))
        is_encoded = pyarrow.types.is_dictionary(column.type)
        return column.dictionary_decode() if is_encoded else column

    return read


def _open_csv(path: Path) -> ColumnParts:
    import pyarrow
    import pyarrow.csv

    with open_bytes(path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        names = next(csv.reader(lines), [])

    def parts() -> Iterator[Columns]:
        if not names:
            return
        bad: list[Rejection] = []

        def reject(row: Any) -> Literal["skip"]:
            reason = f"it has {row.actual_columns} cells, the header has {row.expected_columns}"
            bad.append(Rejection(row.number - 1, reason))  # Arrow counts the header
            return "skip"

        with open_bytes(path) as stream:
            try:
                table = pyarrow.csv.open_csv(
                    stream,
                    # Rows have numbers only without threads.
                    read_options=pyarrow.csv.ReadOptions(use_threads=False, block_size=_BYTES),
                    parse_options=pyarrow.csv.ParseOptions(
                        newlines_in_values=True, invalid_row_handler=reject
                    ),
                    # All as text: Arrow would settle the type of a column by its first rows.
                    convert_options=pyarrow.csv.ConvertOptions(
                        column_types=dict.fromkeys(names, pyarrow.string()),
                        strings_can_be_null=True,
                        null_values=[""],
                    ),
                )
                done = 0
                for batch in table:
                    # Arrow reads ahead: what it skipped further on belongs to a later part.
                    numbers, skipped = _numbers(done, len(batch), bad)
                    done += len(batch) + len(skipped)
                    yield Columns(path, names, numbers, skipped, _reader(batch))
                if bad:
                    yield Columns(path, names, np.arange(0), list(bad), _no_cells)
            except pyarrow.ArrowException as error:
                if "Empty CSV file" not in str(error):
                    raise

    return ColumnParts(path, names, parts)


def _numbers(
    done: int, count: int, bad: list[Rejection]
) -> tuple[NDArray[np.int64], list[Rejection]]:
    """The numbers of the next rows, and the skipped ones among them, which `bad` then lacks."""
    skipped: list[Rejection] = []
    last = done + count
    while bad and bad[0].row <= last:
        skipped.append(bad.pop(0))
        last += 1
    numbers = np.arange(done + 1, last + 1)
    return np.setdiff1d(numbers, [rejection.row for rejection in skipped]), skipped


def _open_jsonl(path: Path) -> ColumnParts:
    def parts() -> Iterator[Columns]:
        with open_bytes(path) as stream:
            done = 0
            while text := _whole_lines(stream):
                part, lines = _of_lines(path, text, done)
                done += lines
                yield _without_headers(part)

    first = next(parts(), None)
    return ColumnParts(path, first.names if first is not None else [], parts)


def _whole_lines(stream: BinaryIO) -> bytes:
    """Some megabytes of whole lines; nothing at the end."""
    text = stream.read(_BYTES)
    return text + stream.readline() if text else text


def _of_lines(path: Path, text: bytes, done: int) -> tuple[Columns, int]:
    """The rows of some lines, the first of which has the number `done` + 1; and how many lines."""
    import pyarrow
    import pyarrow.json

    count = text.count(b"\n") + (not text.endswith(b"\n"))
    try:
        table = pyarrow.json.read_json(
            io.BytesIO(text), pyarrow.json.ReadOptions(block_size=len(text) + 1)
        )
    except pyarrow.ArrowException:
        table = None
    # Arrow reads sound lines fast, and those with anything odd in them not at all.
    if table is not None and table.num_rows == count:
        numbers = np.arange(done + 1, done + count + 1)
        names = list(table.column_names)
        return Columns(
            path, names, numbers, [], lambda name: table.column(name).combine_chunks()
        ), count
    try:
        lines = text.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}): save it as UTF-8") from None
    rows = [parse_line(number, line) for number, line in enumerate(lines, done + 1) if line.strip()]
    return columns_of_rows(path, rows), count


def _open_records(path: Path) -> ColumnParts:
    records = open_records(path)
    return ColumnParts(path, records.names, lambda: columns_of_records(path, iter(records)))


def _length_log(folder: Path) -> Columns:
    import pyarrow

    answers, reader = read_answers(folder)
    names = list(dict.fromkeys(name for answer in answers for name in answer.values))
    left_out = [Rejection(0, "damaged")] * (reader.damaged + reader.unfinished)
    left_out += [Rejection(0, f"{name}: {why}") for name, why in reader.unreadable.items()]
    return Columns(
        path=folder,
        names=names,
        numbers=np.arange(1, len(answers) + 1),
        unreadable=left_out,
        read=lambda name: pyarrow.array([answer.values.get(name) for answer in answers]),
    )


def _without_headers(columns: Columns) -> Columns:
    """Our own files name their schema in lines of their own, one for each start of the engine."""
    if "schema" not in columns.names:
        return columns
    schemas = columns.read("schema")
    for schema in schemas.unique().to_pylist():
        _require_known(columns.path, str(schema or ""))
    requests = schemas.is_null()
    return Columns(
        path=columns.path,
        names=[name for name in columns.names if name != "schema"],
        numbers=columns.numbers[requests.to_numpy(zero_copy_only=False)],
        unreadable=columns.unreadable,
        read=lambda name: columns.read(name).filter(requests),
    )


def _require_known(path: Path, schema: str) -> None:
    if schema.startswith("lengthwise.") and schema not in _SCHEMAS:
        raise InputError(
            f"{path} has schema {schema}, this Lengthwise reads {' and '.join(_SCHEMAS)}: "
            "give another file, or pip install --upgrade lengthwise"
        )


def _no_cells(name: str) -> Any:
    import pyarrow

    return pyarrow.array([], pyarrow.string())
