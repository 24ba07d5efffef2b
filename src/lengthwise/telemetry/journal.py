"""The journal: who came, ran, was paused or put back and ended, in a folder of bounded size.

What `lengthwise explain` reads. Two segments of JSON lines; when the newer one is full, the older
one makes room. No prompt is written. What the disk does not take is lost and counted. A header
begins each segment and each life of the engine, so that a start goes on with the segment there is.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from lengthwise.counters import Counters
from lengthwise.errors import InputError, one_line
from lengthwise.files import append_lines, size_of
from lengthwise.settings.place import own_folder
from lengthwise.telemetry.queued_writer import QueuedWriter

SCHEMA: Final = "lengthwise.journal/1"
SEGMENTS: Final = ("journal.old.jsonl", "journal.jsonl")  #: in order of time

_QUEUED: Final = 1 << 16  # lines that may wait to be written


class Journal(QueuedWriter[dict[str, Any]]):
    """Takes events from the engine, and writes them from a thread of its own.

    Args:
        folder: made if missing; what an earlier engine has left in this one's part of it (see
            `settings.place.own_folder`) is gone on with.
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
        super().__init__("journal", counters, _QUEUED)
        self.key = folder
        self._place = own_folder(folder, engine)
        self._old, self._new = (self._place.path / name for name in SEGMENTS)
        header = {"schema": SCHEMA, "engine": engine, "pid": os.getpid(), "began_s": time.time()}
        self._header = self._encode(header)
        self._begun = False  # whether this life's header is written
        self._most_bytes = most_bytes
        try:
            self._place.path.mkdir(parents=True, exist_ok=True)
            self._new.open("ab").close()
        except (OSError, ValueError) as error:
            self._place.close()
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"journal: cannot write to the folder {one_line(folder)}: {reason}"
            ) from None
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
