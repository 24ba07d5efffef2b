"""The engine's own record of its steps and requests, written only where the user asks for it.

Two JSONL files in the folder that the setting `record` names; each starts with a header line that
gives its schema, and that of the steps the engine's limits. No prompt and no token is written.
"""

from __future__ import annotations

import json
import threading
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

STEPS_SCHEMA: Final = "lengthwise.steps/1"
REQUESTS_SCHEMA: Final = "lengthwise.requests/1"

_FLUSH_S: Final = 0.25


class Recorder:
    """Buffers lines in the engine and writes them from a thread of its own.

    Args:
        folder: where `steps.jsonl` and `requests.jsonl` are appended to.
        limits: of the engine, for the header of `steps.jsonl`.
    """

    def __init__(self, folder: Path, limits: Mapping[str, float]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        # Deques, because appending and taking from the other end need no lock.
        self._steps: deque[dict[str, Any]] = deque()
        self._requests: deque[dict[str, Any]] = deque()
        self._write("steps.jsonl", [{"schema": STEPS_SCHEMA, "engine": dict(limits)}])
        self._write("requests.jsonl", [{"schema": REQUESTS_SCHEMA}])
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lengthwise-record", daemon=True)
        self._thread.start()

    def step(self, **line: Any) -> None:
        """Record one step."""
        self._steps.append(line)

    def request(self, **line: Any) -> None:
        """Record one finished request."""
        self._requests.append(line)

    def close(self) -> None:
        """Write what is left and stop."""
        self._closed.set()
        self._thread.join()
        self._flush()

    def _run(self) -> None:
        while not self._closed.wait(_FLUSH_S):
            self._flush()

    def _flush(self) -> None:
        self._write("steps.jsonl", _take(self._steps))
        self._write("requests.jsonl", _take(self._requests))

    def _write(self, name: str, lines: list[dict[str, Any]]) -> None:
        if lines:
            with (self.folder / name).open("a") as file:
                file.write("".join(json.dumps(line) + "\n" for line in lines))


def _take(lines: deque[dict[str, Any]]) -> list[dict[str, Any]]:
    return [lines.popleft() for _ in range(len(lines))]
