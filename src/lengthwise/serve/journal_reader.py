"""Why a request waited, from the journal that an engine has kept.

The events of a journal are read life by life of its engine, without the lines that cannot be used.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, FiniteFloat, TypeAdapter, ValidationError

from lengthwise.errors import InputError
from lengthwise.policy.guards import BEHIND, OVERDUE, PROMOTED
from lengthwise.telemetry.journal import SCHEMA, SEGMENTS

_NAMED: Final = 5  # overtakers that the text names
#: what vLLM puts before what the client said in X-Request-Id
_KINDS: Final = ("", "cmpl-", "chatcmpl-")
_TIERS: Final = {OVERDUE: "overdue", PROMOTED: "promoted", BEHIND: "behind"}
_WHY: Final = {
    "policy": "for a waiting request",
    "memory": "because KV memory ran out",
    "reset": "because the prefix cache was reset",
}


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


@dataclass(frozen=True)
class Overtaker:
    """A later arrival that got a slot first."""

    request: str
    at_s: float
    rank: float | None


@dataclass(frozen=True)
class Preemption:
    """A slot that was lost, and what had been computed with it."""

    at_s: float
    why: str
    output_tokens: int  #: by then
    instead: list[str]  #: who got a slot in the same step


@dataclass
class Pause:
    """A slot that was given up, while the KV was kept."""

    at_s: float
    output_tokens: int  #: by then
    instead: list[str]  #: who got a slot in the same step
    until_s: float | None = None  #: when it went on; None where it has not
    freed: bool = False  #: its KV was given up then, for want of memory


@dataclass
class Explanation:
    """What a journal says of one request. Times are in s, from its arrival.

    Attributes:
        request: vLLM's name of it.
        engine: the number of the engine that served it.
        priority: its class.
        prompt_tokens: of its prompt.
        ahead: requests that waited when it came.
        expected_tokens: what was predicted when it was last looked at; None where nothing was.
        rank: its rank then, lower runs sooner; None where the order was that of the queue.
        tier: `ordinary`, `overdue`, `promoted` or `behind` (its tenant's share) then.
        waited_s: until its first step; until the journal's end where it has had none.
        runs_s: when it got a slot, each time.
        preempted: each time that it lost it.
        paused: each time that it made way and kept its KV.
        paused_s: all of these together, those to the journal's end that have none.
        longest_stall_s: the longest of them.
        looked_s: when it was prefilled before its turn, for the probe to read; None where not.
        overtaken_by: later arrivals that got a slot before its first.
        finished: why it ended, in vLLM's words; None where it has not.
        output_tokens: of its answer; None where it has not ended.
        total_s: from arrival to end.
        engine_over: whether the engine, or its journal, was started again before it had ended.
        left_out: lines of the journal that could not be used, by reason.
    """

    request: str
    engine: int
    priority: int
    prompt_tokens: int
    ahead: int
    expected_tokens: float | None = None
    rank: float | None = None
    tier: str = "ordinary"
    waited_s: float = 0.0
    runs_s: list[float] = field(default_factory=list)
    preempted: list[Preemption] = field(default_factory=list)
    paused: list[Pause] = field(default_factory=list)
    paused_s: float = 0.0
    longest_stall_s: float = 0.0
    looked_s: float | None = None
    overtaken_by: list[Overtaker] = field(default_factory=list)
    finished: str | None = None
    output_tokens: int | None = None
    total_s: float | None = None
    engine_over: bool = False
    left_out: dict[str, int] = field(default_factory=dict)


def explain(folder: Path, name: str) -> Explanation:
    """What the journals of a folder say of a request.

    Args:
        folder: that the setting `journal` names; each further engine has one below it.
        name: the request's: vLLM's, the id of the response (its beginning), or what the client
            gave as `lengthwise_id` or in the header `X-Request-Id`.

    Raises:
        InputError: there is no journal, it cannot be read, or it has no such request.
    """
    journals = [each for each in (folder, *sorted(folder.glob("engine-*"))) if has_journal(each)]
    if not journals:
        raise InputError(
            f"there is no journal in {folder}: set `journal` to a folder in the settings, and give "
            "that folder here"
        )
    oldest: list[str] = []
    all_left_out: Counter[str] = Counter()
    for journal in journals:
        lives, left_out = read_lives(journal)
        for life in reversed(lives):
            found = _arrival_of(life.events, name)
            if found is not None:
                told = _explained(life, found)
                told.left_out = dict(left_out)
                return told
        arrived = (e.request for life in lives for e in life.events if isinstance(e, Arrived))
        oldest += islice(arrived, 1)
        all_left_out += left_out
    since = f"; the oldest that is there is {oldest[0]}" if oldest else ": nothing has come yet"
    without = f"; {_left_out_in_words(all_left_out)}" if all_left_out else ""
    raise InputError(
        f"no request {name!r} in {folder}{since}{without}. An id is that of the response, or the "
        "client's: its lengthwise_id or X-Request-Id; old ones make room for new ones"
    )


def _left_out_in_words(left_out: Mapping[str, int]) -> str:
    counts = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
    return f"lines of the journal that cannot be used: {counts}"


def _arrival_of(events: list[Event], name: str) -> int | None:
    """Where the newest request of that name arrived."""
    begins = tuple(f"{kind}{name}-" for kind in _KINDS)
    for place in range(len(events) - 1, -1, -1):
        event = events[place]
        if not isinstance(event, Arrived):
            continue
        if name in (event.request, event.id) or event.request.startswith(begins):
            return place
    return None


def _explained(life: Life, arrival: int) -> Explanation:
    events = life.events
    came = events[arrival]
    assert isinstance(came, Arrived)
    told = Explanation(
        came.request, life.engine, came.priority, came.prompt_tokens, ahead=came.waiting
    )
    for place in range(arrival + 1, len(events)):
        event = events[place]
        at_s = event.t - came.t
        if told.total_s is None and not told.runs_s:
            told.waited_s = at_s
        if isinstance(event, Queue):
            looked = event.requests.get(came.request)
            if looked is not None and not told.runs_s:
                _look(told, *looked)
            continue
        if event.request != came.request:
            # Indices count arrivals, so that a larger one came later.
            if isinstance(event, Ran) and not told.runs_s and event.index > came.index:
                told.overtaken_by.append(Overtaker(event.request, at_s, event.rank))
            continue
        last = told.paused[-1] if told.paused else None
        if last is not None and last.until_s is None and not isinstance(event, Paused):
            last.until_s, last.freed = at_s, isinstance(event, Preempted)
        if isinstance(event, Ran):
            told.runs_s.append(at_s)
            if event.look and told.looked_s is None:
                told.looked_s = at_s
            if len(told.runs_s) == 1:
                told.waited_s = at_s
                _look(told, event.rank, event.tier, event.expected)
        elif isinstance(event, Preempted):
            instead = _ran_at(events, place) if event.why == "policy" else []
            told.preempted.append(Preemption(at_s, event.why, event.output_tokens, instead))
        elif isinstance(event, Paused):
            told.paused.append(Pause(at_s, event.output_tokens, _ran_at(events, place)))
        elif isinstance(event, Ended):
            told.finished, told.output_tokens = event.finished, event.output_tokens
            told.total_s = at_s
            break
    told.engine_over = life.is_over and told.total_s is None
    last_s = events[-1].t - came.t
    stalls = [
        (last_s if each.until_s is None else each.until_s) - each.at_s for each in told.paused
    ]
    told.paused_s, told.longest_stall_s = sum(stalls), max(stalls, default=0.0)
    return told


def _look(told: Explanation, rank: float | None, tier: int | None, expected: float | None) -> None:
    told.rank = rank
    told.tier = "ordinary" if tier is None else _TIERS.get(tier, "ordinary")
    told.expected_tokens = expected


def _ran_at(events: list[Event], place: int) -> list[str]:
    """Who got a slot in the step that an event belongs to."""
    t = events[place].t
    first = last = place
    while first > 0 and events[first - 1].t == t:
        first -= 1
    while last + 1 < len(events) and events[last + 1].t == t:
        last += 1
    step = events[first : last + 1]
    return [event.request for event in step if isinstance(event, Ran | Resumed)]


def in_words(told: Explanation) -> list[str]:
    """An explanation, line by line."""
    predicted = (
        "nothing was predicted"
        if told.expected_tokens is None
        else f"{told.expected_tokens:.0f} tokens were predicted"
    )
    rank = "in the order of the queue" if told.rank is None else f"rank {told.rank:.4g}"
    lines = [
        f"{told.request}, engine {told.engine}, class {told.priority}: a prompt of "
        f"{told.prompt_tokens} tokens, {told.ahead} waited when it came",
        f"{predicted}; {rank}, {told.tier}",
    ]
    overtakers = told.overtaken_by
    until = "until it ran" if told.runs_s else "and has not run"
    if told.finished is not None and not told.runs_s:
        until = "and ended without running"
    lines.append(
        f"waited {told.waited_s:.3f} s {until}; {len(overtakers)} later arrivals got a slot before"
    )
    for each in overtakers[:_NAMED]:
        its = "" if each.rank is None else f" (rank {each.rank:.4g})"
        lines.append(f"  {each.at_s:.3f} s: {each.request}{its}")
    if len(overtakers) > _NAMED:
        lines.append(f"  and {len(overtakers) - _NAMED} more")
    for lost in told.preempted:
        instead = f": {', '.join(lost.instead)} ran" if lost.instead else ""
        lines.append(
            f"put back at {lost.at_s:.3f} s, after {lost.output_tokens} tokens, "
            f"{_WHY.get(lost.why, lost.why)}{instead}"
        )
    if told.looked_s is not None:
        lines.append(f"prefilled before its turn at {told.looked_s:.3f} s, for the probe to read")
    for pause in told.paused:
        ended = "its KV was freed for want of memory" if pause.freed else "went on"
        until = "" if pause.until_s is None else f", {ended} at {pause.until_s:.3f} s"
        instead = f": {', '.join(pause.instead)} ran" if pause.instead else ""
        lines.append(
            f"paused at {pause.at_s:.3f} s, after {pause.output_tokens} tokens{until}{instead}"
        )
    if len(told.paused) > 1:
        lines.append(
            f"paused {len(told.paused)} times, {told.paused_s:.3f} s together and "
            f"{told.longest_stall_s:.3f} s at most"
        )
    lines += [f"ran again from {at_s:.3f} s on" for at_s in told.runs_s[1:]]
    if told.total_s is not None:
        lines.append(
            f"ended at {told.total_s:.3f} s with {told.output_tokens} tokens ({told.finished})"
        )
    if told.engine_over:
        lines.append("then the engine, or its journal, ended: it has been started again since")
    if told.left_out:
        lines.append(_left_out_in_words(told.left_out))
    return lines
