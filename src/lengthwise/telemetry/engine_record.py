"""The engine's own record of its steps and requests, written only where the user asks for it.

Two JSONL files in the folder that the setting `record` names; each starts with a header line that
gives its schema, and that of the steps the engine's limits. No prompt and no token is written. What
cannot be written, because the disk is full or too slow, is lost and counted, and serving goes on.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lengthwise.counters import Counters
from lengthwise.errors import InputError, one_line
from lengthwise.settings.place import own_folder

logger = logging.getLogger("vllm.lengthwise")

STEPS_SCHEMA: Final = "lengthwise.steps/1"
REQUESTS_SCHEMA: Final = "lengthwise.requests/1"

_STEPS: Final = "steps.jsonl"
_REQUESTS: Final = "requests.jsonl"
_QUEUED: Final = 1 << 16  # lines of each file that may wait to be written
_FLUSH_S: Final = 0.25
_RETRY_S: Final = 5.0  # after the disk refused
_PATIENCE_S: Final = 10.0  # with a disk that hangs, when closing


class Recorder:
    """Buffers lines in the engine and writes them from a thread of its own.

    Args:
        folder: where `steps.jsonl` and `requests.jsonl` are appended to, in the engine's own part
            of it (see `place.own_folder`); made if missing.
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
        self.key = folder
        self._counters = counters
        self._place = own_folder(folder, engine)
        self.folder = self._place.path
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in (_STEPS, _REQUESTS):
                (self.folder / name).open("ab").close()
        except (OSError, ValueError) as error:
            self._place.close()
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"record: cannot write to the folder {one_line(folder)}: {reason}"
            ) from None
        # Deques, because appending and taking from the other end need no lock.
        self._steps: deque[dict[str, Any]] = deque()
        self._requests: deque[dict[str, Any]] = deque()
        self._headers: dict[str, dict[str, Any]] = {  # still to be written
            _STEPS: {"schema": STEPS_SCHEMA, "engine": dict(limits)},
            _REQUESTS: {"schema": REQUESTS_SCHEMA},
        }
        self._refused_until = 0.0
        self._complained = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lengthwise-record", daemon=True)
        self._thread.start()

    def step(self, **line: Any) -> None:
        """Record one step."""
        self._put(self._steps, line)

    def request(self, **line: Any) -> None:
        """Record one finished request."""
        self._put(self._requests, line)

    def close(self) -> None:
        """Write what is left and stop."""
        self._closed.set()
        self._thread.join(_PATIENCE_S)
        self._place.close()

    def _put(self, lines: deque[dict[str, Any]], line: dict[str, Any]) -> None:
        if len(lines) >= _QUEUED or self._closed.is_set():
            self._counters.record_lost += 1
        else:
            lines.append(line)

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed.wait(_FLUSH_S)
            self._flush(_STEPS, _take(self._steps))
            self._flush(_REQUESTS, _take(self._requests))

    def _flush(self, name: str, lines: list[dict[str, Any]]) -> None:
        if not lines and name not in self._headers:
            return
        if time.monotonic() < self._refused_until:
            self._counters.record_lost += len(lines)
            return
        header = [self._headers[name]] if name in self._headers else []
        encoded = [text for text in map(self._encode_or_lose, header + lines) if text is not None]
        try:
            self._write(name, encoded)
        except OSError as error:
            self._counters.record_lost += len(encoded) - len(header)
            self._refused_until = time.monotonic() + _RETRY_S
            self._complain(error)
        else:
            self._headers.pop(name, None)
            if self._complained:
                self._complained = False
                logger.info("Lengthwise: the record is written again")

    def _encode(self, line: dict[str, Any]) -> str:
        return json.dumps(line) + "\n"

    def _encode_or_lose(self, line: dict[str, Any]) -> str | None:
        """A line's text; None, counted, where it holds something that cannot be encoded."""
        try:
            return self._encode(line)
        except Exception as error:  # one line must not end the record of all others
            self._counters.record_lost += 1
            self._complain(error)
            return None

    def _complain(self, error: Exception) -> None:
        """Say once, until the record is written again, why lines are lost."""
        if not self._complained:
            self._complained = True
            logger.error("Lengthwise: cannot write the record: %s", one_line(error))

    def _write(self, name: str, lines: list[str]) -> None:
        """Append lines, all or none."""
        data = "".join(lines).encode()
        with (self.folder / name).open("ab", buffering=0) as file:
            # What is no file on a disk has no end to go back to.
            end = file.seek(0, os.SEEK_END) if file.seekable() else None
            try:
                if file.write(data) != len(data):  # unbuffered: a full disk takes a part
                    raise OSError("no space left on device")
            except OSError:
                if end is not None:
                    with contextlib.suppress(OSError):
                        file.truncate(end)
                raise


def _take(lines: deque[dict[str, Any]]) -> list[dict[str, Any]]:
    return [lines.popleft() for _ in range(len(lines))]
