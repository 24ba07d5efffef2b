"""What an engine writes down where the user asks for it: its record, and its journal.

The engine fills a queue, and a thread writes down what is in it. What cannot be written, because
the disk is full or too slow, is lost and counted, and serving goes on. No prompt and no token is
written.

The record is of steps and requests: two JSONL files in the folder that the setting `record` names;
each starts with a header line that gives its schema, and that of the steps the engine's limits.

The journal is what `lengthwise explain` reads: who came, ran, was paused or put back and ended, in
a folder of bounded size. There are two segments of JSON lines; when the newer one is full, the
older one makes room. A header begins each segment and each life of the engine, so that a start goes
on with the segment there is.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, NamedTuple, TypeVar

from lengthwise.counters import Counters
from lengthwise.errors import InputError, one_line
from lengthwise.files import append_lines, size_of
from lengthwise.settings.file import Place, own_folder

logger = logging.getLogger("vllm.lengthwise")

_FLUSH_S: Final = 0.25
_RETRY_S: Final = 5.0  # after the disk refused
_PATIENCE_S: Final = 10.0  # with a disk that hangs, when closing

Item = TypeVar("Item")


class QueuedWriter(ABC, Generic[Item]):
    """What the thread cannot keep up with, or cannot write, is lost and counted; serving goes on.

    Args:
        what: is written, such as "journal".
        counters: what is lost is counted there.
        most: items that may wait to be written.
    """

    def __init__(self, what: str, counters: Counters, most: int) -> None:
        self._what = what
        self._counters = counters
        self._most = most
        # A deque, because appending and taking from the other end need no lock.
        self._queue: deque[Item] = deque()
        self._refused_until = 0.0
        self._complained = False  # since all was well
        self._in_trouble = False  # in what is being written
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lengthwise-{what}", daemon=True)

    def close(self) -> None:
        """Write what is left and stop."""
        self._closed.set()
        self._thread.join(_PATIENCE_S)

    @abstractmethod
    def _encode(self, item: Item) -> bytes:
        """An item's line."""

    @abstractmethod
    def _write(self, items: list[Item]) -> int:
        """Write items that have waited, perhaps none; say how many were, and lose the others.

        Raises:
            OSError: the disk does not take them; it is left alone for a while.
        """

    def _end(self) -> None:
        """Done by the thread when all is written."""

    def _lose(self, count: int) -> None:
        self._counters.record_lost += count

    def _put(self, item: Item) -> None:
        """Takes about a microsecond and never waits."""
        if len(self._queue) >= self._most or self._closed.is_set():
            self._lose(1)
        else:
            self._queue.append(item)

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed.wait(_FLUSH_S)
            items = [self._queue.popleft() for _ in range(len(self._queue))]
            if time.monotonic() < self._refused_until:
                self._lose(len(items))
                continue
            self._in_trouble = False
            try:
                written = self._write(items)
            except OSError as error:
                self._refused_until = time.monotonic() + _RETRY_S
                self._complain(error)
            else:
                if written and self._complained and not self._in_trouble:
                    self._complained = False
                    logger.info("Lengthwise: the %s is written again", self._what)
        self._end()

    def _encoded(self, items: Iterable[Item]) -> list[bytes]:
        """The lines of items, without those that cannot be encoded: they are lost."""
        lines = []
        for item in items:
            try:
                lines.append(self._encode(item))
            except Exception as error:  # one line must not end the record of all others
                self._lose(1)
                self._complain(error)
        return lines

    def _complain(self, error: Exception) -> None:
        """Say once, until all is well again, why something is lost."""
        self._in_trouble = True
        if not self._complained:
            self._complained = True
            logger.error("Lengthwise: cannot write the %s: %s", self._what, one_line(error))


STEPS_SCHEMA: Final = "lengthwise.steps/1"
REQUESTS_SCHEMA: Final = "lengthwise.requests/1"

_STEPS: Final = "steps.jsonl"
_REQUESTS: Final = "requests.jsonl"
_RECORDS_QUEUED: Final = 1 << 17  # lines of both files that may wait to be written


class _Line(NamedTuple):
    file: str
    values: Mapping[str, Any]


class Recorder(QueuedWriter[_Line]):
    """Buffers lines in the engine and writes them from a thread of its own.

    Args:
        folder: where `steps.jsonl` and `requests.jsonl` are appended to, in the engine's own part
            of it (see `settings.file.own_folder`); made if missing.
        limits: of the engine, for the header of `steps.jsonl`.
        counters: `record_lost` is counted there.
        engine: the engine's number.

    Attributes:
        key: the folder.
        folder: the engine's part of it.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(
        self, folder: Path, limits: Mapping[str, float], counters: Counters, engine: int = 0
    ) -> None:
        super().__init__("record", counters, _RECORDS_QUEUED)
        self.key = folder
        self._place = own_folder(folder, engine)
        self.folder = self._place.path
        _make_files("record", folder, self._place, (_STEPS, _REQUESTS))
        headers = (
            _Line(_STEPS, {"schema": STEPS_SCHEMA, "engine": dict(limits)}),
            _Line(_REQUESTS, {"schema": REQUESTS_SCHEMA}),
        )
        self._headers = {line.file: self._encode(line) for line in headers}
        self._begun: set[str] = set()  # files that have their header
        self._thread.start()

    def step(self, **line: Any) -> None:
        """Record one step."""
        self._put(_Line(_STEPS, line))

    def request(self, **line: Any) -> None:
        """Record one finished request."""
        self._put(_Line(_REQUESTS, line))

    def close(self) -> None:
        """Write what is left and stop."""
        super().close()
        self._place.close()

    def _encode(self, item: _Line) -> bytes:
        return json.dumps(item.values).encode() + b"\n"

    def _write(self, items: list[_Line]) -> int:
        written, refused = 0, None
        for name in (_STEPS, _REQUESTS):
            lines = self._encoded(item for item in items if item.file == name)
            if lines or name not in self._begun:
                try:
                    self._append(name, lines)
                    written += len(lines)
                except OSError as error:
                    self._lose(len(lines))
                    refused = error
        if refused is not None:
            raise refused
        return written

    def _append(self, name: str, lines: list[bytes]) -> None:
        """Append lines to a file, which may have been taken away, after its header."""
        path = self.folder / name
        if name not in self._begun or size_of(path) == 0:
            lines = [self._headers[name], *lines]
        append_lines(path, b"".join(lines))
        self._begun.add(name)


SCHEMA: Final = "lengthwise.journal/1"
SEGMENTS: Final = ("journal.old.jsonl", "journal.jsonl")  #: in order of time

_EVENTS_QUEUED: Final = 1 << 16  # lines that may wait to be written


class Journal(QueuedWriter[dict[str, Any]]):
    """Takes events from the engine, and writes them from a thread of its own.

    Args:
        folder: made if missing; what an earlier engine has left in this one's part of it (see
            `settings.file.own_folder`) is gone on with.
        engine: the engine's number.
        counters: `record_lost` is counted there.
        most_bytes: of a segment.

    Attributes:
        key: the folder.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(
        self, folder: Path, engine: int, counters: Counters, most_bytes: int = 32 << 20
    ) -> None:
        super().__init__("journal", counters, _EVENTS_QUEUED)
        self.key = folder
        self._place = own_folder(folder, engine)
        self._old, self._new = (self._place.path / name for name in SEGMENTS)
        header = {"schema": SCHEMA, "engine": engine, "pid": os.getpid(), "began_s": time.time()}
        self._header = self._encode(header)
        self._begun = False  # whether this life's header is written
        self._most_bytes = most_bytes
        _make_files("journal", folder, self._place, [self._new.name])
        self._thread.start()

    def put(self, **line: Any) -> None:
        """Note an event."""
        self._put(line)

    def close(self) -> None:
        """Write what is left and stop."""
        super().close()
        self._place.close()

    def _encode(self, item: dict[str, Any]) -> bytes:
        return json.dumps(item).encode() + b"\n"

    def _write(self, items: list[dict[str, Any]]) -> int:
        lines = self._encoded(items)
        if not lines:
            return 0
        data = b"".join(lines)
        try:
            self._append(data)
        except OSError:
            self._lose(len(lines))
            raise
        return len(lines)

    def _append(self, data: bytes) -> None:
        """Append to the newer segment, or to a new one where that is full."""
        size = size_of(self._new)
        if size > 0 and size + len(self._header) + len(data) > self._most_bytes:
            os.replace(self._new, self._old)
            size = 0
        begins = size == 0 or not self._begun
        append_lines(self._new, self._header + data if begins else data)
        self._begun = True


def _make_files(what: str, folder: Path, place: Place, names: Iterable[str]) -> None:
    """Make files that are missing in an engine's part of a folder that settings name.

    Raises:
        InputError: it cannot be made or written to; the place is left to others.
    """
    try:
        place.path.mkdir(parents=True, exist_ok=True)
        for name in names:
            (place.path / name).open("ab").close()
    except (OSError, ValueError) as error:
        place.close()
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{what}: cannot write to the folder {one_line(folder)}: {reason}"
        ) from None
