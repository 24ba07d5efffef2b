"""The journal: who came, ran, was paused or put back and ended, in a folder of bounded size.

What `lengthwise explain` reads. Two segments of JSON lines; when the newer one is full, the older
one makes room. No prompt is written. What the disk does not take is lost and counted.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import deque
from pathlib import Path
from typing import Any, Final

from lengthwise.counters import Counters
from lengthwise.errors import InputError, one_line
from lengthwise.settings.place import own_folder

logger = logging.getLogger("vllm.lengthwise")

SCHEMA: Final = "lengthwise.journal/1"
SEGMENTS: Final = ("journal.old.jsonl", "journal.jsonl")  #: in order of time

_QUEUED: Final = 1 << 16  # lines that may wait to be written
_FLUSH_S: Final = 0.25
_PATIENCE_S: Final = 10.0  # with a disk that hangs, when closing


class Journal:
    """Takes events from the engine, and writes them from a thread of its own.

    Args:
        folder: made if missing; what an earlier engine has left in this one's part of it (see
            `place.own_folder`) is gone on with.
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
        self.key = folder
        self._place = own_folder(folder, engine)
        self._old, self._new = (self._place.path / name for name in SEGMENTS)
        self._engine = engine
        self._counters = counters
        self._most_bytes = most_bytes
        self._lines: deque[dict[str, Any]] = deque()
        self._complained = False
        try:
            self._place.path.mkdir(parents=True, exist_ok=True)
            self._begin_segment()
        except (OSError, ValueError) as error:
            self._place.close()
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"journal: cannot write to the folder {one_line(folder)}: {reason}"
            ) from None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lengthwise-journal", daemon=True)
        self._thread.start()

    def put(self, **line: Any) -> None:
        """Note an event."""
        if len(self._lines) >= _QUEUED or self._closed.is_set():
            self._counters.record_lost += 1
        else:
            self._lines.append(line)

    def close(self) -> None:
        """Write what is left and stop."""
        self._closed.set()
        self._thread.join(_PATIENCE_S)
        self._place.close()

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed.wait(_FLUSH_S)
            lines = [self._lines.popleft() for _ in range(len(self._lines))]
            if not lines:
                continue
            try:
                self._write("".join(json.dumps(line) + "\n" for line in lines).encode())
                self._complained = False
            except Exception as error:  # one bad line, or a full disk: the journal goes on
                self._counters.record_lost += len(lines)
                if not self._complained:
                    self._complained = True
                    logger.error("Lengthwise: cannot write the journal: %s", one_line(error))

    def _write(self, data: bytes) -> None:
        if not self._new.exists() or self._new.stat().st_size + len(data) > self._most_bytes:
            self._begin_segment()
        with self._new.open("ab") as file:
            file.write(data)

    def _begin_segment(self) -> None:
        if self._new.exists():
            os.replace(self._new, self._old)
        header = {"schema": SCHEMA, "engine": self._engine, "pid": os.getpid()}
        self._new.write_text(json.dumps(header) + "\n")
