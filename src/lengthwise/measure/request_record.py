"""What happened to one request: the row of a round's file, schema `lengthwise.records/1`.

Times are seconds. A request's own clock starts when the client sent it; the round's clock starts
when the round did. What never happened is NaN.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.files import replaced
from lengthwise.measure.run_info import DamagedFileError, check_schema

SCHEMA = "lengthwise.records/1"

_FIELDS: list[Any] = [
    pa.field("round", pa.int32()),
    pa.field("policy", pa.string()),
    pa.field("load", pa.string()),
    pa.field("request", pa.int32()),
    pa.field("scheduled_s", pa.float64()),
    pa.field("sent_s", pa.float64()),
    pa.field("first_token_s", pa.float64()),
    pa.field("finish_s", pa.float64()),
    pa.field("token_times", pa.list_(pa.float32())),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("output_tokens", pa.int32()),
    pa.field("expected_tokens", pa.float64()),
    pa.field("queue_s", pa.float64()),
    pa.field("preemptions", pa.int32()),
    pa.field("overtaken", pa.int32()),
    pa.field("error", pa.string()),
]
_COLUMNS = pa.schema(_FIELDS, metadata={"schema": SCHEMA})


@dataclass(slots=True)
class RequestRecord:
    """One request of one round, as the client and the engine saw it."""

    round: int  # which round of the run, from 0
    policy: str  # the policy's label, as given on the command line
    load: str  # "burst", "1.2" (of capacity), "rate=3" (requests/s), "trace=2" (times as fast),
    # ^ "concurrency=8" (clients in a closed loop) or "burst=256" (of several bursts, that of 256)
    request: int  # which request of the workload; the same number is the same request everywhere
    scheduled_s: float  # when it was to be sent, s from the start of the round
    sent_s: float = math.nan  # when it was sent, s from the start of the round
    first_token_s: float = math.nan  # when its first token came, s from the start of the round
    finish_s: float = math.nan  # when its last token came, s from the start of the round
    token_times: Sequence[float] | NDArray[np.float32] = field(default_factory=list)
    # ^ when each piece of its answer came, s from sent_s
    prompt_tokens: int = 0
    output_tokens: int = 0
    expected_tokens: float = math.nan  # what the predictor said its answer's length would be
    queue_s: float = math.nan  # from its arrival in the engine to its first step there
    preemptions: int = 0  # how often it lost its place in the batch
    overtaken: int = 0  # how many later arrivals got a place before it did
    error: str | None = None  # one line, where it failed


@dataclass(frozen=True)
class Records:
    """The requests of one round as columns of equal length n.

    Fields are those of `RequestRecord`; the pieces' times of request i are
    `token_times[token_offsets[i] : token_offsets[i + 1]]`.
    """

    round: NDArray[np.int32]
    policy: list[str]
    load: list[str]
    request: NDArray[np.int32]
    scheduled_s: NDArray[np.float64]
    sent_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    token_times: NDArray[np.float32]  # [pieces of all requests]
    token_offsets: NDArray[np.int64]  # [n + 1]
    prompt_tokens: NDArray[np.int32]
    output_tokens: NDArray[np.int32]
    expected_tokens: NDArray[np.float64]
    queue_s: NDArray[np.float64]
    preemptions: NDArray[np.int32]
    overtaken: NDArray[np.int32]
    error: list[str | None]

    def __len__(self) -> int:
        """The number of requests, n."""
        return len(self.request)

    @property
    def completed(self) -> NDArray[np.bool_]:
        """Shape [n]: the requests that were answered to the end without an error."""
        without_error = np.array([error is None for error in self.error], dtype=np.bool_)
        finished: NDArray[np.bool_] = without_error & np.isfinite(self.finish_s)
        return finished

    @classmethod
    def from_rows(cls, rows: Sequence[RequestRecord]) -> Records:
        """Turn rows, such as a client collects them, into columns."""
        columns: dict[str, Any] = {
            name: [getattr(row, name) for row in rows]
            for name in _COLUMNS.names
            if name != "token_times"
        }
        pieces = [np.asarray(row.token_times, dtype=np.float32) for row in rows]
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(piece) for piece in pieces], out=offsets[1:])
        times = np.concatenate(pieces) if pieces else np.empty(0, dtype=np.float32)
        return cls._from_columns(columns, times, offsets)

    @classmethod
    def from_table(cls, table: pa.Table) -> Records:
        """Turn an Arrow table with the columns of the schema into numpy columns."""
        lists: Any = table.column("token_times").combine_chunks()
        offsets = lists.offsets.to_numpy().astype(np.int64)
        times = lists.values.to_numpy(zero_copy_only=False)
        columns = {
            name: table.column(name).to_pylist()
            if pa.types.is_string(_COLUMNS.field(name).type)
            else table.column(name).to_numpy()
            for name in _COLUMNS.names
            if name != "token_times"
        }
        return cls._from_columns(columns, times, offsets)

    @classmethod
    def _from_columns(
        cls, columns: dict[str, Any], times: NDArray[np.float32], offsets: NDArray[np.int64]
    ) -> Records:
        for name in columns:
            kind = _COLUMNS.field(name).type
            if not pa.types.is_string(kind):
                columns[name] = np.asarray(columns[name], dtype=kind.to_pandas_dtype())
        return cls(token_times=times, token_offsets=offsets, **columns)

    def to_table(self) -> pa.Table:
        """The columns as an Arrow table with the schema's name in its metadata."""
        lists = pa.ListArray.from_arrays(
            pa.array(self.token_offsets, type=pa.int32()), pa.array(self.token_times)
        )
        arrays = [
            lists
            if name == "token_times"
            else pa.array(getattr(self, name), type=_COLUMNS.field(name).type)
            for name in _COLUMNS.names
        ]
        return pa.Table.from_arrays(arrays, schema=_COLUMNS)


def write_records(records: Records | Sequence[RequestRecord], path: Path) -> None:
    """Write one round's requests, whole or not at all; `.jsonl` gives JSON lines, else parquet.

    Raises:
        InputError: the file cannot be written.
    """
    columns = records if isinstance(records, Records) else Records.from_rows(records)
    try:
        with replaced(path) as part:
            if path.suffix == ".jsonl":
                _write_jsonl(columns, part)
            else:
                pq.write_table(columns.to_table(), part, compression="zstd")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def read_records(path: Path) -> Records:
    """Read one round's requests from parquet or, with the suffix `.jsonl`, from JSON lines.

    A JSON-lines file that was cut off in its last line is read up to there.

    Raises:
        InputError: the file is missing, damaged (DamagedFileError), of another kind or of a newer
            schema.
    """
    try:
        table = _read_jsonl(path) if path.suffix == ".jsonl" else pq.read_table(path)
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: give a file of records") from error
    except (OSError, pa.ArrowInvalid) as error:
        raise DamagedFileError(f"{path} is damaged or no file of records: run it again") from error
    metadata = table.schema.metadata or {}
    check_schema(metadata.get(b"schema", b"").decode(), SCHEMA, path)
    missing = [name for name in _COLUMNS.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]!r}: run it again")
    return Records.from_table(table.select(_COLUMNS.names).cast(_COLUMNS))


def _write_jsonl(records: Records, path: Path) -> None:
    names = [member.name for member in fields(RequestRecord)]
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"schema": SCHEMA}) + "\n")
        for row in records.to_table().select(names).to_pylist():
            # NaN is no JSON: what never happened is null there.
            plain = {
                name: None if isinstance(value, float) and math.isnan(value) else value
                for name, value in row.items()
            }
            file.write(json.dumps(plain, allow_nan=False) + "\n")


def _read_jsonl(path: Path) -> pa.Table:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, object]] = []
    for number, line in enumerate(lines):
        try:
            value = json.loads(line)
        except ValueError as error:
            if number == len(lines) - 1:
                break
            raise InputError(f"{path}:{number + 1} is not JSON: run it again") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}:{number + 1} is not a JSON object: run it again")
        rows.append(value)
    check_schema(rows[0].get("schema") if rows else None, SCHEMA, path)
    columns = []
    for member in _COLUMNS:
        values = [row.get(member.name) for row in rows[1:]]
        if pa.types.is_float64(member.type):
            values = [math.nan if value is None else value for value in values]
        columns.append(pa.array(values, type=member.type))
    return pa.Table.from_arrays(columns, schema=_COLUMNS)
