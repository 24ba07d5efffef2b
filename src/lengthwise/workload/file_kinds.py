"""What kind of file holds a table, and its bytes, whether packed or not."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple, cast

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


def unreadable(path: Path, error: Exception) -> InputError:
    """That a file is damaged, or not what its name says."""
    reason = str(error).partition("\n")[0]
    return InputError(f"{path}: not a readable {kind_of(path).suffix[1:]} file: {reason}")
