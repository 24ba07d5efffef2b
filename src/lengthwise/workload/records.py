"""The rows of a table as dictionaries, one by one or all at once: parquet, JSONL, JSON and CSV.

Rows, columns and files that are not taken have a reason. A file's name says what kind of table it
holds and whether its bytes are packed. No file is held in memory whole, but for a JSON file that is
a single object, and where in it the rows are `rows_of` says.
"""

from __future__ import annotations

import contextlib
import csv
import difflib
import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

from lengthwise.errors import InputError
from lengthwise.files import parse_json

SUFFIXES: Final = (".parquet", ".jsonl", ".json", ".csv")
_PACKED: Final = {".gz": "gzip", ".zst": "zstd"}
_BUFFER: Final = 1 << 20  # bytes
_HEAD: Final = 1_000  # rows whose keys are the columns of a file of JSON
_PARQUET_ROWS: Final = 1_024  # read at a time
_LARGEST_DOCUMENT: Final = 2**30  # bytes of a JSON file that is one object

Record = dict[str, Any]
Numbered = tuple[int, Record]  # the row's number in the file, from 1, without a CSV header


class Rejection(NamedTuple):
    """A row that was left out."""

    row: int  #: its number in the file, from 1; a CSV header is not counted
    reason: str


def refuse_rejected(name: str, rejected: Sequence[Rejection], what: str) -> None:
    """Raise an InputError if any row of a file was malformed, naming the first."""
    if rejected:
        first = rejected[0]
        raise InputError(
            f"{name}, row {first.row}: {first.reason} (malformed rows in all: {len(rejected)}); "
            f"mend the {what}, or leave such rows out with --skip-malformed"
        )


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


def cell_is(cell: object, value: str) -> bool:
    """Whether a cell is what a condition says, in whatever way its kind of file writes it.

    Args:
        cell: of a row, or its text.
        value: as the user gives it: `true` and `True` are the same, and so are 1 and 1.0 for a
            number with a fraction. Other texts must be the same.
    """
    text = str(cell)
    if text == value:
        return True
    if isinstance(cell, float):
        try:
            return float(value) == cell
        except ValueError:
            return False
    return text.lower() in ("true", "false") and text.lower() == value.lower()


def require_column(path: Path, names: Sequence[str], name: str) -> None:
    """Refuse the name of a column that a table has not.

    Raises:
        InputError: names the nearest, and all that there are.
    """
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{path}: no column {name!r}: {hint}the columns are {', '.join(names)}")


class FileKind(NamedTuple):
    """What a file's name says of it."""

    suffix: str  #: one of SUFFIXES
    packed: str | None  #: "gzip", "zstd" or None


def kind_of(path: Path) -> FileKind:
    """Refuse what cannot be a table.

    Raises:
        InputError: the file is missing or of another kind.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: not a file: give a {', '.join(SUFFIXES)} file")
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = _PACKED.get(suffixes[-1]) if suffixes else None
    suffix = "".join(suffixes[-2:-1] if packed else suffixes[-1:])
    if suffix == ".ndjson":
        suffix = ".jsonl"
    if suffix not in SUFFIXES:
        raise InputError(
            f"{path}: tables are read from {', '.join(SUFFIXES)} files, packed with .gz or .zst or "
            f"not, not from {path.suffix or 'files without a suffix'}"
        )
    return FileKind(suffix, packed)


@contextlib.contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """The bytes of a file, unpacked.

    Raises:
        InputError: it cannot be read, is damaged, or what is read from it as text is not UTF-8.
    """
    import pyarrow

    kind = kind_of(path)
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            if kind.packed is None:
                yield raw
            else:
                unpacked = stack.enter_context(pyarrow.CompressedInputStream(raw, kind.packed))
                yield cast(BinaryIO, io.BufferedReader(unpacked, _BUFFER))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}): save it as UTF-8") from None
    except pyarrow.ArrowException as error:
        raise unreadable(path, error) from None
    except OSError as error:
        if kind.packed and error.errno is None:  # what pyarrow says of damaged packing
            raise unreadable(path, error) from None
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None


@contextlib.contextmanager
def open_parquet(path: Path) -> Iterator[Any]:
    """A parquet file, unpacked, as pyarrow.parquet.ParquetFile.

    Raises:
        InputError: it cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    with open_bytes(path) as stream:
        # It is read from its end: what is packed around it has to be unpacked first.
        source = stream if kind_of(path).packed is None else io.BytesIO(stream.read())
        try:
            with pyarrow.parquet.ParquetFile(source) as file:
                yield file
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(path, error) from None


def unreadable(path: Path, error: Exception) -> InputError:
    """That a file is damaged, or not what its name says."""
    reason = str(error).partition("\n")[0]
    return InputError(f"{path}: not a readable {kind_of(path).suffix[1:]} file: {reason}")


#: arrays of `vllm bench serve`, and what one entry is called
VLLM_BENCH: Final = {
    "input_lens": "input_len",
    "output_lens": "output_len",
    "start_times": "start_time",
    "ttfts": "ttft",
    "generated_texts": "generated_text",
    "errors": "error",
}
STATUS: Final = "status"  #: of a request of guidellm: successful, incomplete or errored


def rows_of(document: Record) -> Iterator[Any]:
    """The rows of a file that is one object, as if the file were a list of them.

        vllm bench serve --save-detailed   an object of arrays, one entry a request
        guidellm                           benchmarks[].requests.{successful,incomplete,errored}[]
        aiperf                             data[].payloads[], in its inputs.json
        Hugging Face's dataset viewer      rows[].row
        pandas                             an object of columns, each from index to cell

    Any other object with exactly one list of objects in it has its rows there; else it is one row.
    Sources: vllm/benchmarks/serve.py (0.32), guidellm/schemas/base.py and request_stats.py,
    aiperf docs/tutorials/working-with-profile-exports.md.
    """
    if is_vllm_bench(document):
        yield from of_arrays(document)
    elif isinstance(document.get("benchmarks"), list):
        yield from _of_guidellm(document["benchmarks"])
    elif _is_records(document.get("rows")) and all("row" in each for each in document["rows"]):
        yield from (each["row"] for each in document["rows"])
    elif len(document) > 1 and _is_pandas(document):
        first = next(iter(document.values()))
        yield from ({name: cells[key] for name, cells in document.items()} for key in first)
    else:
        lists = [value for value in document.values() if _is_records(value)]
        # A single conversation, or a single trace of WEKA, is a row itself.
        is_row = any(name in document for name in ("messages", "conversations", "requests"))
        if len(lists) == 1 and not is_row:
            yield from lists[0]
        else:
            yield document


def is_vllm_bench(document: Record) -> bool:
    """Whether it is what `vllm bench serve --save-detailed` writes of one run."""
    return isinstance(document.get("input_lens"), list) and isinstance(
        document.get("output_lens"), list
    )


def of_arrays(document: Record) -> Iterator[Record]:
    """The requests of a run of `vllm bench serve`; those of older versions have no times."""
    arrays = {
        name: document[plural]
        for plural, name in VLLM_BENCH.items()
        if isinstance(document.get(plural), list)
    }
    model = document.get("model_id")
    for place in range(len(document["input_lens"])):
        row = {name: array[place] if place < len(array) else None for name, array in arrays.items()}
        row.setdefault(VLLM_BENCH["start_times"], 0.0)
        yield row if model is None else {**row, "model": model}


def _of_guidellm(benchmarks: list[Any]) -> Iterator[Any]:
    for benchmark in benchmarks:
        requests = benchmark.get("requests") if isinstance(benchmark, dict) else None
        for status, rows in (requests if isinstance(requests, dict) else {}).items():
            if isinstance(rows, list):
                yield from ({**row, STATUS: status} for row in rows if isinstance(row, dict))


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, dict) for row in value)


def _is_pandas(document: Record) -> bool:
    columns = list(document.values())
    return all(
        isinstance(column, dict) and column and column.keys() == columns[0].keys()
        for column in columns
    ) and all(key.isdigit() for key in columns[0])


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
        batches = map(_in_microseconds, file.iter_batches(_PARQUET_ROWS))
        try:
            yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        except (ValueError, OverflowError) as error:  # a date that Python has none for
            raise unreadable(path, error) from None


def _in_microseconds(batch: Any) -> Any:
    """A batch whose times are none finer than Python's, which it refuses to make of them."""
    import pyarrow

    kinds = [_coarser(kind) for kind in batch.schema.types]
    columns = [
        column if column.type == kind else column.cast(kind, safe=False)
        for column, kind in zip(batch.columns, kinds, strict=True)
    ]
    return pyarrow.RecordBatch.from_arrays(columns, names=batch.schema.names)


def _coarser(kind: Any) -> Any:
    """The same Arrow type in microseconds where it is, or holds, one in nanoseconds."""
    import pyarrow

    if pyarrow.types.is_timestamp(kind) and kind.unit == "ns":
        return pyarrow.timestamp("us", kind.tz)
    if pyarrow.types.is_duration(kind) and kind.unit == "ns":
        return pyarrow.duration("us")
    if pyarrow.types.is_list(kind):
        return pyarrow.list_(kind.value_field.with_type(_coarser(kind.value_type)))
    if pyarrow.types.is_struct(kind):
        return pyarrow.struct([each.with_type(_coarser(each.type)) for each in kind])
    return kind


def _csv(path: Path) -> Iterator[Numbered | Rejection]:
    # Answers and prompts may be longer than the module's default of 128 KiB a cell.
    csv.field_size_limit(2**31 - 1)
    with open_bytes(path) as stream:
        lines = io.TextIOWrapper(stream, encoding="utf-8-sig", newline="")
        try:
            reader = csv.DictReader(lines)
            names = [name for name in reader.fieldnames or () if name]
            for name in names:
                if names.count(name) > 1:
                    # Of a row only the last one's value would be left.
                    raise InputError(
                        f"{path}: several columns are called {name!r}: rename all but one"
                    )
            for number, record in enumerate(reader, 1):
                # Kept under no name. Empty ones are of a comma at the end of each line; others are
                # of a comma that should have been quoted, so that a cell lacks what is behind it.
                beyond: Any = record.pop(None, ())
                if any(beyond):
                    header = len(reader.fieldnames or ())
                    cells = header + len(beyond)
                    yield Rejection(number, f"it has {cells} cells, the header has {header}")
                else:
                    yield number, record
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
        record = parse_json(line)
    except ValueError as error:
        return Rejection(number, f"not JSON: {error}")
    return _checked(number, record)


def _checked(number: int, record: Any) -> Numbered | Rejection:
    if isinstance(record, dict):
        return number, record
    return Rejection(number, "not a JSON object")


def _json(path: Path) -> Iterator[Numbered | Rejection]:
    """A list of objects, one object, or, as many such files are, JSONL after all."""
    with open_bytes(path) as stream:
        peeked = io.BufferedReader(stream, _BUFFER)  # type: ignore[type-var]
        if peeked.peek(3).startswith(b"\xef\xbb\xbf"):  # the mark that Windows puts first
            peeked.read(3)
        if peeked.peek(1).lstrip()[:1] == b"[":
            yield from _array(path, peeked)
            return
        lines = ((number, line) for number, line in enumerate(peeked, 1) if line.strip())
        begun = list(itertools.islice(lines, 2))
        # The first line of JSONL is a whole object, and another line follows.
        if len(begun) == 2 and not isinstance(parse_line(1, begun[0][1].decode()), Rejection):
            for number, line in itertools.chain(begun, lines):
                yield parse_line(number, line.decode())
            return
        text = b"".join(line for _, line in begun) + peeked.read(_LARGEST_DOCUMENT)
    if len(text) > _LARGEST_DOCUMENT:
        raise InputError(
            f"{path}: a JSON file that is one object may have {_LARGEST_DOCUMENT >> 30} GiB: "
            "save it as a list of objects, or as JSONL with one a line"
        )
    try:
        document = parse_json(text)
    except ValueError as error:
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
        document = parse_json(text.decode("utf-8-sig")) if len(text) <= _LARGEST_DOCUMENT else None
    except ValueError:
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
