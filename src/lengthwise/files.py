"""Files that others read, write or want: read in bounded time, replaced as a whole, or locked."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from lengthwise.errors import InputError, one_line


def read_bounded(path: Path, most_bytes: int) -> bytes:
    """The content of a regular file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than that.
    """
    # Opening a named pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("is not a file")
        data = file.read(most_bytes + 1)
    if len(data) > most_bytes:
        raise ValueError(f"is larger than {most_bytes >> 20} MiB")
    return data


def parse_json(said: str | bytes) -> Any:
    """What JSON of others says.

    Raises:
        ValueError: it is not JSON, or nested deeper than anybody means it.
    """
    try:
        return json.loads(said)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """What a JSON file that a user names holds.

    Raises:
        InputError: it cannot be read, or is not JSON.
    """
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {one_line(error)}") from None


def json_objects(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, without a line that was cut off or is being written.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        for line in file:
            try:
                value = parse_json(line)
            except ValueError:
                continue
            if isinstance(value, dict):
                yield value


def size_of(path: Path) -> int:
    """A file's bytes; 0 where there is none.

    Raises:
        OSError: nothing can be said of it.
    """
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def append_lines(path: Path, data: bytes) -> None:
    """Append to a file, which is made if missing, its folder too, all or nothing.

    They begin a line of their own, also where a writer before has died within one.

    Raises:
        OSError: it does not take all of it, and is as long as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        # What is no file on a disk has no end to go back to.
        end = file.seek(0, os.SEEK_END) if file.seekable() else None
        if end and not _ends_a_line(path):
            data = b"\n" + data
        try:
            if file.write(data) != len(data):  # unbuffered: a full disk takes a part
                raise OSError("no space left on device")
        except OSError:
            if end is not None:
                with contextlib.suppress(OSError):
                    file.truncate(end)
            raise


def _ends_a_line(path: Path) -> bool:
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A file beside `path` to be written in the block, which then takes its place.

    Readers see the old one or the new one, whole. Where the block fails, the old one stays and
    nothing is left beside it. It keeps its mode, and a link to it stays one. The name is this
    thread's own: several may write the same file.

    Raises:
        OSError: it cannot take the place.
    """
    target = path.resolve()
    part = target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        yield part
        with contextlib.suppress(FileNotFoundError):
            part.chmod(stat.S_IMODE(target.stat().st_mode))
        os.replace(part, target)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """A new folder beside `path` to be filled in the block, which then takes its place.

    Where the block fails, the old one stays and nothing is left beside it. For the moment between
    two renamings there is neither.

    Raises:
        OSError: it cannot be made, or cannot take the place.
    """
    target = path.resolve()
    part, old = (
        target.with_name(f"{target.name}.{os.getpid()}.{threading.get_ident()}.{end}")
        for end in ("part", "old")
    )
    part.mkdir(parents=True)
    try:
        yield part
        with contextlib.suppress(FileNotFoundError):
            os.replace(target, old)
        try:
            os.replace(part, target)
        except OSError:
            with contextlib.suppress(FileNotFoundError):
                os.replace(old, target)
            raise
    finally:
        for folder in (part, old):
            shutil.rmtree(folder, ignore_errors=True)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file as `replaced` does; its folder is made if missing.

    Raises:
        OSError: it cannot be written; what was there before is unchanged.
    """
    path.resolve().parent.mkdir(parents=True, exist_ok=True)
    with replaced(path) as part:
        part.write_bytes(data)


def take_lock(path: Path) -> IO[bytes] | None:
    """Hold a lock as long as the returned file is open; None where somebody else holds it.

    The system releases it with the process, however that ends. The file and its folder are made if
    missing, and stay.

    Raises:
        OSError: the file cannot be written, or its file system knows no locks.
    """
    import fcntl  # not everywhere, and nothing else here needs it

    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    except OSError:
        file.close()
        raise
    return file
