"""Read whole columns of a large table from a file, as Arrow arrays: parquet, JSONL or CSV.

`table.py` gives every cell as a Python object, which suits prompts; a trace of a million rows is
read here in about a second because its cells are never taken apart.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload.length_log import read_answers
from lengthwise.workload.table import Rejection, read_table, require_table

# The files of ours that hold requests; each names its schema.
_SCHEMAS: Final = ("lengthwise.requests/1", "lengthwise.records/1")


@dataclass(frozen=True)
class Columns:
    """The columns of a file with n rows."""

    path: Path
    names: list[str]
    numbers: NDArray[np.int64]  # shape (n,), row numbers in the file, from 1, without a CSV header
    unreadable: list[Rejection]  # rows that could not even be parsed
    read: Callable[[str], Any]  # name -> pyarrow.Array of shape (n,); CSV cells are strings


def open_columns(path: Path) -> Columns:
    """Open a table by its suffix, or the folder of a length log.

    Raises:
        InputError: the file is missing, of another kind, unreadable or has no rows.
    """
    if path.is_dir():
        return _open_length_log(path)
    suffix = require_table(path)
    reader = {".parquet": _open_parquet, ".jsonl": _open_jsonl, ".csv": _open_csv}[suffix]
    try:
        columns = reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    if len(columns.numbers) == 0 and not columns.unreadable:
        raise InputError(f"{path}: the table is empty: it has no rows")
    return columns


def _open_parquet(path: Path) -> Columns:
    import pyarrow
    import pyarrow.parquet

    def read(name: str) -> Any:
        try:
            with pyarrow.parquet.ParquetFile(path) as file:
                column: Any = file.read(columns=[name]).column(0).combine_chunks()
        except (pyarrow.ArrowException, OSError) as error:
            raise _unreadable(path, error) from None
        is_encoded = pyarrow.types.is_dictionary(column.type)
        return column.dictionary_decode() if is_encoded else column

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, count = file.schema_arrow, file.metadata.num_rows
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from None
    _require_known(path, (schema.metadata or {}).get(b"schema", b"").decode())
    return Columns(path, list(schema.names), np.arange(1, count + 1), [], read)


def _open_csv(path: Path) -> Columns:
    import pyarrow
    import pyarrow.csv

    with path.open(encoding="utf-8-sig", newline="") as lines:
        names = next(csv.reader(lines), [])
    if not names:
        return Columns(path, [], np.arange(0), [], _nothing)
    unreadable: list[Rejection] = []

    def reject(row: Any) -> Literal["skip"]:
        reason = f"it has {row.actual_columns} cells, the header has {row.expected_columns}"
        unreadable.append(Rejection(row.number - 1, reason))  # Arrow counts the header
        return "skip"

    try:
        table = pyarrow.csv.read_csv(
            path,
            # Rows have numbers only without threads.
            read_options=pyarrow.csv.ReadOptions(use_threads=False),
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
    except pyarrow.ArrowException as error:
        raise _unreadable(path, error) from None
    numbers = np.arange(1, table.num_rows + len(unreadable) + 1)
    numbers = np.setdiff1d(numbers, [rejection.row for rejection in unreadable])
    return Columns(
        path, names, numbers, unreadable, lambda name: table.column(name).combine_chunks()
    )


def _open_jsonl(path: Path) -> Columns:
    import pyarrow
    import pyarrow.json

    with path.open("rb") as lines:
        count = sum(1 for _ in lines)
    try:
        table = pyarrow.json.read_json(path)
    except pyarrow.ArrowException:
        table = None
    # Arrow reads a sound file fast, and a file with anything odd in it not at all.
    if table is None or table.num_rows != count:
        columns = _open_odd_jsonl(path)
    else:
        columns = Columns(
            path=path,
            names=list(table.column_names),
            numbers=np.arange(1, count + 1),
            unreadable=[],
            read=lambda name: table.column(name).combine_chunks(),
        )
    return _without_headers(columns)


def _open_odd_jsonl(path: Path) -> Columns:
    """Read line by line; every cell becomes text, as in CSV."""
    import pyarrow

    table = read_table(path)
    return Columns(
        path=path,
        names=table.names,
        numbers=np.array(table.numbers, dtype=np.int64),
        unreadable=table.unreadable,
        read=lambda name: pyarrow.array(map(_as_text, table.column(name)), pyarrow.string()),
    )


def _as_text(cell: Any) -> str | None:
    if cell is None:
        return None
    text = cell if isinstance(cell, str) else json.dumps(cell)
    return text.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair


def _open_length_log(folder: Path) -> Columns:
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


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = str(error).partition("\n")[0]
    return InputError(f"{path}: not a readable {path.suffix} file: {reason}")


def _nothing(name: str) -> Any:
    raise KeyError(name)
