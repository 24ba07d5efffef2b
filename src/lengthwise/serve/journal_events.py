"""The events of a journal, life by life of its engine, without the lines that cannot be used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from lengthwise.errors import InputError
from lengthwise.telemetry.journal import SCHEMA, SEGMENTS


@dataclass(frozen=True)
class Arrived:
    """A request came."""

    t: FiniteFloat  #: s, monotonic clock; so in all events
    event: Literal["arrived"]
    request: str  #: vLLM's name; so in all that have it
    id: str | None  #: the client's
    index: int  #: in the order of arrivals
    priority: int
    prompt_tokens: int
    waiting: int  #: requests, when it came


@dataclass(frozen=True)
class Ran:
    """A request got a slot."""

    t: FiniteFloat
    event: Literal["ran"]
    request: str
    index: int
    rank: float | None
    tier: int | None
    expected: float | None  #: tokens
    look: bool = False  #: only prefilled, for the probe to read


@dataclass(frozen=True)
class Preempted:
    """A request lost its slot and its KV."""

    t: FiniteFloat
    event: Literal["preempted"]
    request: str
    why: str
    output_tokens: int


@dataclass(frozen=True)
class Paused:
    """A request made way and keeps its KV."""

    t: FiniteFloat
    event: Literal["paused"]
    request: str
    output_tokens: int


@dataclass(frozen=True)
class Resumed:
    """A request runs again after a pause."""

    t: FiniteFloat
    event: Literal["resumed"]
    request: str


@dataclass(frozen=True)
class Ended:
    """A request has ended."""

    t: FiniteFloat
    event: Literal["ended"]
    request: str
    finished: str | None
    output_tokens: int


@dataclass(frozen=True)
class Queue:
    """The first of those that wait: rank, tier and expected tokens."""

    t: FiniteFloat
    event: Literal["queue"]
    requests: dict[str, tuple[float | None, int | None, float | None]]


Event = Arrived | Ran | Preempted | Paused | Resumed | Ended | Queue


@dataclass(frozen=True)
class _Header:
    """What stands before the events of a life, and first in each segment."""

    schema: str
    engine: int = 0
    pid: int | None = None
    began_s: float | None = None


@dataclass
class Life:
    """What happened in an engine, from one start to its end or to the journal's.

    Attributes:
        engine: its number.
        events: in order of time.
        is_over: whether the engine, or its journal, was started again after it.
    """

    engine: int
    events: list[Event] = field(default_factory=list)
    is_over: bool = False


_EVENT: Final[TypeAdapter[Event]] = TypeAdapter(Annotated[Event, Field(discriminator="event")])
_HEADER: Final = TypeAdapter(_Header)


def has_journal(folder: Path) -> bool:
    """Whether a journal is kept in a folder."""
    return any((folder / name).is_file() for name in SEGMENTS)


def read_lives(folder: Path) -> tuple[list[Life], Counter[str]]:
    """The lives of one engine in order, and how many lines could not be used, by reason.

    A line that is being written is neither used nor counted.

    Raises:
        InputError: a segment cannot be read.
    """
    lives: list[Life] = []
    left_out: Counter[str] = Counter()
    latest: _Header | None = None
    for name in SEGMENTS:
        usable = None  # the header of the lines that follow, or why they are of no use
        unusable = "before the first header"
        for line in _lines(folder / name):
            try:
                event = _EVENT.validate_json(line, strict=True)
            except ValidationError:
                header = _header(line)
                if header is None:
                    left_out["damaged"] += 1
                elif header.schema != SCHEMA:
                    usable, unusable = None, f"of another version ({header.schema!r})"
                    left_out[unusable] += 1
                else:
                    usable = header
                    if header != latest:
                        lives.append(Life(header.engine))
                    latest = header
            else:
                if usable is None:
                    left_out[unusable] += 1
                else:
                    lives[-1].events.append(event)
    for life in lives[:-1]:
        life.is_over = True
    return lives, left_out


def _header(line: bytes) -> _Header | None:
    try:
        return _HEADER.validate_json(line, strict=True)
    except ValidationError:
        return None


def _lines(path: Path) -> Iterator[bytes]:
    """Whole lines; none where there is no such file."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield line
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
