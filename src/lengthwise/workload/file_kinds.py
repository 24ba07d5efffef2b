"""What kind of file holds a table, its bytes, packed or not, and where in it the rows are."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final, NamedTuple, cast

from lengthwise.errors import InputError

SUFFIXES: Final = (".parquet", ".jsonl", ".json", ".csv")
_PACKED: Final = {".gz": "gzip", ".zst": "zstd"}
_BUFFER: Final = 1 << 20  # bytes


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


Record = dict[str, Any]

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
