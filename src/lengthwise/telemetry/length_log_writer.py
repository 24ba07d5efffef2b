"""Writes the length log: hashed features and the length of every answer, from a thread of its own.

The scheduler only appends to a bounded queue. What the thread cannot keep up with, or cannot write
because the disk is full, is lost and counted, and serving goes on. No prompt and no token id is
written, unless the setting asks for prompts. The format is that of `workload.length_log`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, Final, NamedTuple

from lengthwise.counters import Counters
from lengthwise.errors import InputError, one_line
from lengthwise.files import size_of
from lengthwise.predict.extract import TokenText
from lengthwise.predict.features import FEATURES_VERSION, find_features, new_scratch
from lengthwise.predict.prediction import Prompt
from lengthwise.settings import LengthLogSettings
from lengthwise.settings.file import SERVER
from lengthwise.telemetry.journal import QueuedWriter
from lengthwise.workload.length_log import (
    SCHEMA,
    encode_features,
    encode_line,
    last_arrival_s,
    segment_path,
    segments,
)

_QUEUED: Final = 1024  # answers that may wait to be written
_SEGMENTS: Final = 8  # that the log has when it is full


class _Ended(NamedTuple):
    prompt: Prompt
    values: dict[str, Any]


class LengthLog(QueuedWriter[_Ended]):
    """A log of one engine.

    Args:
        settings: where, how much, and whether with prompts.
        text: what token ids stand for.
        model: the served model's name.
        counters: `logged` and `log_lost` are counted there.
        clock: the system's, s since 1970. Read once: times in the log never go back.
        engine: its number among the engines of a data-parallel server, for the header.

    Attributes:
        key: the settings.

    Raises:
        InputError: the folder cannot be made.
    """

    def __init__(
        self,
        settings: LengthLogSettings,
        text: TokenText,
        model: str,
        counters: Counters,
        clock: Callable[[], float] = time.time,
        *,
        engine: int = 0,
    ) -> None:
        super().__init__("length log", counters, _QUEUED)
        self.key = self.settings = settings
        self._folder = Path(settings.folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(
                f"length_log: cannot make the folder {one_line(self._folder)}: {reason}"
            ) from None
        self._text = text
        self._header = {
            "schema": SCHEMA,
            "model": model,
            "tokenizer": text.tokenizer,
            "tokenizer_fingerprint": text.fingerprint,
            "tokens": text.digest,
            "features": FEATURES_VERSION,
            "server": os.environ.get(SERVER),
            "engine": engine,
            "pid": os.getpid(),
        }
        # A clock that was set back since the last start must not put these answers before others.
        started = max(clock(), last_arrival_s(self._folder))
        self._epoch = started - time.monotonic()
        self._most_bytes = settings.megabytes << 20
        self._segment_bytes = self._most_bytes // _SEGMENTS
        self._scratch = new_scratch()
        find_features((), text.vocabulary, text.template, self._scratch)  # compiles
        self._file: IO[bytes] | None = None
        self._path = self._folder
        self._size = 0
        self._thread.start()

    def answer(self, prompt: Prompt, arrival_s: float, values: Mapping[str, object]) -> None:
        """Log a finished request; takes about a microsecond and never waits.

        Args:
            prompt: what its predictor saw.
            arrival_s: by the monotonic clock.
            values: what else its line says.
        """
        line = {"arrival_s": round(self._epoch + arrival_s, 6), **values}
        self._put(_Ended(prompt, line))

    def _end(self) -> None:
        self._close_segment()

    def _lose(self, count: int) -> None:
        self._counters.log_lost += count

    def _encode(self, item: _Ended) -> bytes:
        time.sleep(0)  # the engine's thread goes first
        vocabulary, template = self._text.vocabulary, self._text.template
        token_ids, hints = item.prompt
        found = find_features(token_ids, vocabulary, template, self._scratch, hints)
        item.values["features"] = encode_features(self._scratch.buckets[:found])
        if self.settings.text:
            item.values["text"] = self._text.text(list(token_ids))
        return encode_line(item.values)

    def _write(self, items: list[_Ended]) -> int:
        lines = self._encoded(items)
        if self._file is not None and os.fstat(self._file.fileno()).st_nlink == 0:
            self._close_segment()  # another engine's segments needed the room: begin a new one
        written = 0
        try:
            for line in lines:
                if self._file is None or self._size + len(line) > self._segment_bytes:
                    self._next_segment()
                if self._size + len(line) <= self._segment_bytes:  # else it is too long for any
                    self._append(line)
                    written += 1
        except OSError:
            self._close_segment()
            raise
        finally:
            self._counters.logged += written
            self._lose(len(lines) - written)
        return written

    def _append(self, data: bytes) -> None:
        """Append to the segment, all or nothing."""
        assert self._file is not None
        try:
            if self._file.write(data) != len(data):  # unbuffered: a full disk takes a part
                raise OSError("no space left on device")
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(data)

    def _next_segment(self) -> None:
        """Begin a segment, after the oldest ones have made room for it."""
        self._close_segment()
        self._folder.mkdir(parents=True, exist_ok=True)  # somebody may have cleaned up
        tokens = self._folder / f"tokens-{self._text.digest[:16]}.safetensors"
        if not tokens.exists():
            self._text.save(tokens)
        there = segments(self._folder)
        number = there[-1][0] + 1 if there else 1
        sizes = [size_of(path) for _, path in there]
        for place, (_, oldest) in enumerate(there):
            if sum(sizes[place:]) + self._segment_bytes <= self._most_bytes:
                break
            oldest.unlink(missing_ok=True)
        self._size = 0
        while self._file is None:
            self._path = segment_path(self._folder, number)
            try:
                self._file = self._path.open("xb", buffering=0)
            except FileExistsError:  # another engine's, which serves the same model beside this one
                number += 1
        # The time tells it from one that had this number before somebody removed the log.
        began_s = round(self._epoch + time.monotonic(), 6)
        self._append(encode_line({**self._header, "segment": number, "began_s": began_s}))

    def _close_segment(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()
            if self._size == 0:  # not even its header could be written
                self._path.unlink(missing_ok=True)
