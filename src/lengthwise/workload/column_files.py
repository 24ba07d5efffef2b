"""Files whose columns are read part by part: parquet, CSV, JSONL, and whatever has rows."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload.columns import (
    ColumnParts,
    Columns,
    cell_text,
    columns_of_records,
    columns_of_rows,
)
from lengthwise.workload.file_kinds import kind_of, open_bytes, open_parquet
from lengthwise.workload.length_log import read_answers
from lengthwise.workload.records import open_records, parse_line
from lengthwise.workload.rejections import Rejection

# The files of ours that hold requests; each names its schema.
_SCHEMAS: Final = ("lengthwise.requests/1", "lengthwise.records/1")
_BYTES: Final = 2 << 20  # of text that are read at a time
_ROWS: Final = 1 << 16  # of parquet, likewise


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
