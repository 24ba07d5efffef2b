"""The length log: how long answers really were, in segments that survive crashes and full disks.

A folder of `lengths-00000001.jsonl`, `lengths-00000002.jsonl`, … Each segment begins with a header
and has one line for each answer. Every line ends with the CRC-32 of what stands before, so that a
line that was cut short or damaged is recognised, left out and counted, and nothing else is lost.

The order of answers is that of segments and lines; of answers that were read while several engines
wrote, the order in which they were read. No clock decides it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.files import parse_json

SCHEMA: Final = "lengthwise.lengths/1"
FULL: Final = "stop"  #: the answer ended by itself: its length is the whole length
CUT: Final = "length"  #: it was cut at a limit: the whole length is at least what was generated

_SEGMENT: Final = re.compile(r"lengths-(\d{8,})\.jsonl")
_CHECK: Final = re.compile(rb',"crc32":"([0-9a-f]{8})"\}\n')
_CHECK_BYTES: Final = 21
_TAIL_BYTES: Final = 1 << 18  # read to find the last line; the longest has about 70 KB


class Position(NamedTuple):
    """A place in the log; positions compare as the log is ordered."""

    segment: int  #: the segment's number
    offset: int  #: bytes from its beginning


@dataclass(frozen=True)
class Answer:
    """One finished request. What is not known is None."""

    position: Position  # where its line ends
    segment: str  # its segment's name, as `LengthLogReader.reached` has it
    header: Mapping[str, Any]  # of its segment
    values: Mapping[str, Any]  # the line, see docs/reference/records.md

    @property
    def output_tokens(self) -> int:
        """Tokens that were generated."""
        return int(self.values["output_tokens"])

    @property
    def finished(self) -> str | None:
        """Why it ended: "stop", "length", "abort", …"""
        reason: str | None = self.values["finished"]
        return reason

    @property
    def features(self) -> NDArray[np.int32]:
        """The prompt's hashed features, ascending."""
        return np.frombuffer(base64.b64decode(self.values["features"]), dtype="<i4")


def segment_path(folder: Path, number: int) -> Path:
    """The file of a segment."""
    return folder / f"lengths-{number:08d}.jsonl"


def segments(folder: Path) -> list[tuple[int, Path]]:
    """Numbers and files of the segments in a folder, oldest first; none where there is none."""
    if not folder.is_dir():
        return []
    found = ((_SEGMENT.fullmatch(path.name), path) for path in folder.iterdir())
    return sorted((int(match[1]), path) for match, path in found if match)


def encode_line(values: Mapping[str, Any]) -> bytes:
    """A line with its checksum."""
    text = json.dumps(values, separators=(",", ":"))[:-1].encode()
    return b'%b,"crc32":"%08x"}\n' % (text, zlib.crc32(text))


def encode_features(features: NDArray[np.int32]) -> str:
    """Features as a line has them. Sorted, since the order found is the order of the words."""
    return base64.b64encode(np.sort(features).astype("<i4").tobytes()).decode()


def decode_line(line: bytes) -> dict[str, Any] | None:
    """The values of a line; None if it is not the line that was written."""
    text, check = line[:-_CHECK_BYTES], _CHECK.fullmatch(line[-_CHECK_BYTES:])
    if check is None or int(check[1], 16) != zlib.crc32(text):
        return None
    try:
        values = parse_json(text + b"}")
    except ValueError:
        return None
    return values if isinstance(values, dict) else None


@dataclass
class _Segment:
    """How far a segment has been read."""

    name: str = ""  # its number, and a checksum of its first line
    first: bytes = b""  # that line
    header: Mapping[str, Any] | None = None
    offset: int = 0  # bytes
    cut: bool = False  # it ends in the middle of a line


class LengthLogReader:
    """Reads a log that may still be written to, by one engine or several, each line once.

    Each engine writes a segment of its own, so that several may grow at the same time. Where the
    log was removed and begun again meanwhile, a number may come back with another file: it is known
    by its header, which no other has, or because it is shorter, and read from its beginning.

    Attributes:
        unreadable: why segments were left out whole, by name: their header is damaged or of
            another version, or the file cannot be read.
        unfinished: whether the log ends in the middle of a line: it is being written, or a crash
            cut it off.
    """

    def __init__(self, folder: Path) -> None:
        """Start before the oldest segment of `folder`."""
        self.folder = folder
        self.unreadable: dict[str, str] = {}
        self.unfinished = False
        self._damaged = 0
        self._segments: dict[int, _Segment] = {}

    @property
    def damaged(self) -> int:
        """Lines left out because their checksum is wrong or missing, or their end not written.

        Not counted is the end of the log, see `unfinished`.
        """
        cut = sum(segment.cut for segment in self._segments.values())
        return self._damaged + cut - self.unfinished

    def reached(self) -> dict[str, int]:
        """How far each segment has been read, bytes. Another file has another name, even where it
        has the same number."""
        return {segment.name: segment.offset for segment in self._segments.values() if segment.name}

    def read_new(self) -> Iterator[Answer]:
        """The answers that were logged since the last call."""
        there = segments(self.folder)
        numbers = {number for number, _ in there}
        self._segments = {n: segment for n, segment in self._segments.items() if n in numbers}
        for number, path in there:
            self.unfinished = False
            yield from self._read_segment(number, path)
            self.unfinished = self._segments[number].cut

    def _read_segment(self, number: int, path: Path) -> Iterator[Answer]:
        segment = self._segments.setdefault(number, _Segment())
        try:
            with path.open("rb") as file:
                first = file.readline()
                if first != segment.first or os.fstat(file.fileno()).st_size < segment.offset:
                    segment = self._segments[number] = _begin(number, first)
                file.seek(segment.offset)
                lines = file.readlines()
        except FileNotFoundError:  # it was the oldest, and has just made room
            return
        except OSError as error:
            self.unreadable[path.name] = error.strerror or str(error)
            return
        self.unreadable.pop(path.name, None)
        segment.cut = not segment.name and first != b""
        if not segment.name:
            return
        header = segment.header
        if header is None or header.get("schema") != SCHEMA:
            schema = None if header is None else header.get("schema")
            self.unreadable[path.name] = f"its header says {schema!r}, not {SCHEMA!r}"
            return
        for line in lines:
            if not line.endswith(b"\n"):  # only the last can
                segment.cut = True
                return
            segment.offset += len(line)
            values = decode_line(line)
            if values is None:
                self._damaged += 1
            else:
                yield Answer(Position(number, segment.offset), segment.name, header, values)


def _begin(number: int, first: bytes) -> _Segment:
    """A segment of which no answer has been read, by its first line."""
    if not first.endswith(b"\n"):  # being written, or cut off
        return _Segment()
    name = f"{number}-{zlib.crc32(first):08x}"
    return _Segment(name, first, decode_line(first), len(first))


def read_answers(folder: Path) -> tuple[list[Answer], LengthLogReader]:
    """All answers of a log, oldest first, and the reader that knows what was left out.

    Raises:
        InputError: there is no log in the folder, or no sound line in it.
    """
    if not segments(folder):
        raise InputError(
            f"{folder}: no length log there (no lengths-*.jsonl): name the folder that "
            "`lengthwise serve --log DIR` or the setting `length_log` writes to"
        )
    reader = LengthLogReader(folder)
    answers = list(reader.read_new())
    if not answers:
        left_out = "; ".join(f"{name}: {why}" for name, why in reader.unreadable.items())
        raise InputError(
            f"{folder}: no answer is logged there yet"
            + (f" (damaged lines: {reader.damaged})" if reader.damaged else "")
            + (f" (left out: {left_out})" if left_out else "")
            + ": serve some requests first"
        )
    return answers, reader


def last_arrival_s(folder: Path) -> float:
    """The arrival time in the log's last sound line, s; 0 where there is none."""
    for _, path in reversed(segments(folder)):
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                lines = file.readlines()
        except OSError:
            continue
        for line in reversed(lines):
            values = decode_line(line)
            if values is not None and "arrival_s" in values:
                return float(values["arrival_s"])
    return 0.0
