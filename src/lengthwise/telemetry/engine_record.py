"""The engine's own record of its steps and requests, written only where the user asks for it.

Two JSONL files in the folder that the setting `record` names; each starts with a header line that
gives its schema, and that of the steps the engine's limits. No prompt and no token is written. What
cannot be written, because the disk is full or too slow, is lost and counted, and serving goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from lengthwise.counters import Counters
from lengthwise.errors import InputError, one_line
from lengthwise.files import append_lines, size_of
from lengthwise.settings.place import own_folder
from lengthwise.telemetry.queued_writer import QueuedWriter

STEPS_SCHEMA: Final = "lengthwise.steps/1"
REQUESTS_SCHEMA: Final = "lengthwise.requests/1"

_STEPS: Final = "steps.jsonl"
_REQUESTS: Final = "requests.jsonl"
_QUEUED: Final = 1 << 17  # lines of both files that may wait to be written


class _Line(NamedTuple):
    file: str
    values: Mapping[str, Any]


class Recorder(QueuedWriter[_Line]):
    """Buffers lines in the engine and writes them from a thread of its own.

    Args:
        folder: where `steps.jsonl` and `requests.jsonl` are appended to, in the engine's own part
            of it (see `settings.place.own_folder`); made if missing.
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
        super().__init__("record", counters, _QUEUED)
        self.key = folder
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
