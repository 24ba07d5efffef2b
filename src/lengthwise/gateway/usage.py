"""How long an answer was, as its bytes pass: the `usage` of OpenAI's API, streamed or whole.

Events are passed on as they come. One is decoded only if it says what was used or why the answer
ended: in a stream of a thousand tokens two are.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

_MOST_BYTES: Final = 1 << 20  #: of one event, or of a whole answer: more is passed on unread
_END: Final = re.compile(rb"\r?\n\r?\n")
_TELLING: Final = re.compile(rb'"usage"\s*:\s*\{|"finish_reason"\s*:\s*"')
# In JSON text a quotation mark has a backslash before it, so this is found as a key alone.
_NO_USAGE: Final = re.compile(rb'\s*,\s*"usage"\s*:\s*null')


class Usage(NamedTuple):
    """What an answer says of itself."""

    output_tokens: int
    prompt_tokens: int | None
    finished: str  #: "stop", "length", "tool_calls", …


class _Reader:
    def __init__(self) -> None:
        self._tokens: dict[str, Any] | None = None
        self._finished: str | None = None

    @property
    def found(self) -> Usage | None:
        """What was said so far; None while something is missing."""
        if self._tokens is None or self._finished is None:
            return None
        output, prompt = (self._tokens.get(name) for name in ("completion_tokens", "prompt_tokens"))
        if type(output) is not int or output < 0:
            return None
        return Usage(output, prompt if type(prompt) is int else None, self._finished)

    def _read(self, values: object) -> bool:
        """Take in an object of the API; whether it has nothing but what was used."""
        if not isinstance(values, dict):
            return False
        choices = values.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            reason = choice.get("finish_reason") if isinstance(choice, dict) else None
            if isinstance(reason, str):
                self._finished = reason
        if isinstance(values.get("usage"), dict):
            self._tokens = values["usage"]
            return choices == []
        return False


class StreamUsage(_Reader):
    """Reads a stream of events.

    Args:
        hide: the client did not ask for what was used: it is taken out of what is passed on.
    """

    def __init__(self, hide: bool) -> None:
        super().__init__()
        self.changes = hide  #: whether what is passed on may be less than what came
        self._rest = b""
        self._too_long = False

    def feed(self, data: bytes) -> bytes:
        """What is passed on of these bytes and of those kept back: whole events."""
        if self._too_long:
            return data
        events, begin = [], 0
        data = self._rest + data
        for end in _END.finditer(data):
            events.append(self._event(data[begin : end.end()]))
            begin = end.end()
        self._rest = data[begin:]
        if len(self._rest) > _MOST_BYTES:
            self._too_long = True
            events.append(self.flush())
        return b"".join(events)

    def flush(self) -> bytes:
        """What was kept back, at the end of the stream."""
        rest, self._rest = self._rest, b""
        return rest

    def _event(self, event: bytes) -> bytes:
        if _TELLING.search(event):
            text = b"".join(line[5:] for line in event.splitlines() if line.startswith(b"data:"))
            try:
                only_usage = self._read(json.loads(text))
            except (ValueError, RecursionError):
                only_usage = False
            if only_usage and self.changes:
                return b""
        return _NO_USAGE.sub(b"", event) if self.changes else event


class WholeUsage(_Reader):
    """Reads an answer that comes as one JSON object."""

    def __init__(self) -> None:
        super().__init__()
        self.changes = False
        self._parts: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> bytes:
        """These bytes, which are passed on."""
        self._size += len(data)
        if self._size <= _MOST_BYTES:
            self._parts.append(data)
        else:
            self._parts.clear()
        return data

    def flush(self) -> bytes:
        """Nothing: all was passed on. What the whole says is read."""
        with contextlib.suppress(ValueError, RecursionError):
            self._read(json.loads(b"".join(self._parts)))
        self._parts.clear()
        return b""


class AnswerUsage:
    """Chooses how an answer is read, by its headers, and remembers what was found.

    Args:
        hide: see `StreamUsage`.
    """

    def __init__(self, hide: bool) -> None:
        self.hide = hide
        self._reading: StreamUsage | WholeUsage | None = None

    def __call__(self, headers: Mapping[str, str]) -> StreamUsage | WholeUsage | None:
        """What reads an answer with these headers; None where nothing can."""
        self._reading = None
        kind = headers.get("Content-Type", "")
        if headers.get("Content-Encoding", "identity") != "identity":
            return None
        if kind.startswith("text/event-stream"):
            self._reading = StreamUsage(self.hide)
        elif kind.startswith("application/json"):
            self._reading = WholeUsage()
        return self._reading

    @property
    def found(self) -> Usage | None:
        """What the answer said of itself, as far as it passed."""
        return None if self._reading is None else self._reading.found
