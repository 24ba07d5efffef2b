"""Requests as a simulator wants them: when each arrived, and how long it was. No text.

`load_trace` reads them from a table on disk, or from a folder that Lengthwise recorded, part by
part: no more of a large file is held than is asked for.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lengthwise.errors import InputError
from lengthwise.workload.layouts import MOONCAKE_TEXT, CountPrompt
from lengthwise.workload.open_trace import TraceFile, TracePart, open_trace
from lengthwise.workload.records import Rejection, refuse_rejected
from lengthwise.workload.trace_rows import TraceState, offsets_of


@dataclass(frozen=True)
class Trace:
    """n requests with arrival times and lengths, in the order in which they arrived.

    The prompt of request i starts with the blocks
    `block_hashes[block_offsets[i] : block_offsets[i + 1]]`, of `hash_tokens` tokens each, the last
    one perhaps only begun; two blocks with one number have the same content and the same content
    before them. Prompt tokens beyond its blocks are shared with nobody.

    Raises:
        InputError: the columns differ in length, times decrease or are negative or not finite, or a
            length is below 1.
    """

    name: str  # the file's or the folder's
    arrival_s: NDArray[np.float64]  # shape (n,), s from the start of the trace, non-decreasing
    prompt_tokens: NDArray[np.int64]  # shape (n,), at least 1
    output_tokens: NDArray[np.int64]  # shape (n,), at least 1
    rejected: list[Rejection]  # malformed rows that were left out
    layout: str  # "azure", "plain" and so on (see layouts.py), or "synthetic"
    block_hashes: NDArray[np.int64] | None = None  # block numbers from 0, of all prompts in turn
    block_offsets: NDArray[np.int64] | None = None  # shape (n + 1,), where prompts begin in it
    hash_tokens: int = 0  # tokens of a block
    after: NDArray[np.int64] | None = None  # shape (n,), whose end it waits for, -1: nobody's
    delay_s: NDArray[np.float64] | None = None  # shape (n,), from that end to its arrival, s
    left_out: Mapping[str, int] = field(default_factory=dict)  # sound, but no requests: by reason
    notes: tuple[str, ...] = ()  # what was done to the times

    def __post_init__(self) -> None:
        """Refuse columns that are no trace."""
        if not len(self.arrival_s) == len(self.prompt_tokens) == len(self.output_tokens):
            raise InputError(
                f"{self.name}: {len(self.arrival_s)} arrival times, {len(self.prompt_tokens)} "
                f"prompt lengths and {len(self.output_tokens)} answer lengths: give as many of each"
            )
        gaps = np.diff(self.arrival_s, prepend=0.0)
        if not (np.isfinite(self.arrival_s).all() and (gaps >= 0).all()):
            raise InputError(f"{self.name}: arrival times must be finite, from 0, never decreasing")
        if len(self) and min(self.prompt_tokens.min(), self.output_tokens.min()) < 1:
            raise InputError(f"{self.name}: prompts and answers must have at least one token")
        self._check_sessions()

    def _check_sessions(self) -> None:
        """Refuse turns that wait for a later one, or that several others share."""
        if self.after is None or self.delay_s is None:
            return
        waits = self.after >= 0
        if not len(self.after) == len(self.delay_s) == len(self):
            raise InputError(f"{self.name}: give what each of its {len(self)} requests waits for")
        if (self.after >= np.arange(len(self))).any() or not (self.delay_s[waits] >= 0).all():
            raise InputError(f"{self.name}: a turn may wait for an earlier one, no time below 0")
        if len(np.unique(self.after[waits])) < waits.sum():
            raise InputError(f"{self.name}: two turns of sessions wait for the same one")

    def __len__(self) -> int:
        """The number of requests, n."""
        return len(self.arrival_s)

    @property
    def rate(self) -> float:
        """Mean arrivals per second; inf where all requests arrive at once."""
        span = float(self.arrival_s[-1] - self.arrival_s[0]) if len(self) else 0.0
        return (len(self) - 1) / span if span > 0 else math.inf

    def refuse_rejected(self) -> None:
        """Raise an InputError if any row was malformed, naming the first."""
        refuse_rejected(self.name, self.rejected, "trace")

    def first(self, count: int) -> Trace:
        """The first `count` requests.

        Raises:
            InputError: the trace has fewer, or `count` is below 1.
        """
        if not 1 <= count <= len(self):
            raise InputError(
                f"{self.name}: {count:,} requests were asked for, the trace has {len(self):,}: "
                f"ask for 1 to {len(self):,}, or give a longer trace"
            )
        return self._of(np.arange(count))

    def between(self, start_s: float, end_s: float) -> Trace:
        """The requests that arrive from `start_s` (s) on and before `end_s`, the first at 0 s.

        Raises:
            InputError: no request arrives then.
        """
        start, end = np.searchsorted(self.arrival_s, [start_s, end_s])
        if start >= end:
            last = self.arrival_s[-1] if len(self) else 0.0
            raise InputError(
                f"{self.name}: no request arrives between {start_s:g} s and {end_s:g} s: the last "
                f"one arrives at {last:g} s"
            )
        part = self._of(np.arange(start, end))
        return replace(part, arrival_s=part.arrival_s - part.arrival_s[0])

    def scaled(self, factor: float) -> Trace:
        """The same requests, arriving `factor` times as fast.

        Later turns of sessions come so much sooner after the answers before them, which take as
        long as they take: those are not sped up.

        Raises:
            InputError: the factor is no number above 0.
        """
        if not (math.isfinite(factor) and factor > 0):
            raise InputError(f"the speed of a trace must be a number above 0, got {factor}")
        delay_s = None if self.delay_s is None else self.delay_s / factor
        return replace(self, arrival_s=self.arrival_s / factor, delay_s=delay_s)

    def with_arrivals(self, times_s: ArrayLike) -> Trace:
        """The same requests at other times.

        Args:
            times_s: shape (n,), s from the start of the trace, non-decreasing.

        Raises:
            InputError: they are no such times.
        """
        return replace(self, arrival_s=np.array(times_s, dtype=np.float64))

    def _of(self, rows: NDArray[np.int64]) -> Trace:
        """Some of the requests, blocks numbered from 0 again."""
        part = {
            name: getattr(self, name)[rows]
            for name in ("arrival_s", "prompt_tokens", "output_tokens")
        }
        if self.after is not None and self.delay_s is not None:
            places = np.full(len(self) + 1, -1)  # the last is nobody's
            places[rows] = np.arange(len(rows))
            part |= {"after": places[self.after[rows]], "delay_s": self.delay_s[rows]}
        if self.block_hashes is None or self.block_offsets is None:
            return replace(self, **part)
        counts = np.diff(self.block_offsets)[rows]
        offsets = offsets_of(counts)
        places = np.repeat(self.block_offsets[rows] - offsets[:-1], counts) + np.arange(offsets[-1])
        _, hashes = np.unique(self.block_hashes[places], return_inverse=True)
        return replace(self, **part, block_hashes=hashes, block_offsets=offsets)


def load_trace(
    path: str | Path,
    *,
    limit: int | None = None,
    window_s: tuple[float, float | None] = (0.0, None),
    where: Mapping[str, str] | None = None,
    block_tokens: int | None = None,
    answer_tokens: int | None = None,
    count_prompt: CountPrompt | None = None,
    seed: int = 0,
) -> Trace:
    """Read a trace from a table, or from a folder that Lengthwise recorded.

    Of a benchmark's folder this is its first round under fcfs, as its requests were sent.

    Args:
        path: a .parquet, .jsonl, .json or .csv file, packed with .gz or .zst or not, or a folder;
            its layout is told by its columns.
        limit: keep at most so many sound rows, the first ones; no more of a file is read.
        window_s: keep requests that arrive so long after the first one, s, or later, and earlier
            than the second.
        where: only rows whose columns have these values, compared as text.
        block_tokens: tokens of a block in `hash_ids`; None: told from the requests.
        answer_tokens: how long answers are, where a trace does not say.
        count_prompt: how many tokens a prompt has, for traces that have prompts, not their lengths.
        seed: of requests that are drawn, as ServeGen's clients' are.

    Returns:
        The sound rows, the first at 0 s, and the malformed ones with their reasons: lengths that
        are missing, no whole numbers, below 1 or above 10⁸; times that are missing or unreadable,
        or earlier than in a row above. Layouts that are written when a request ends are sorted, and
        so are sessions; in others such a row is a mistake that sorting would hide.

    Raises:
        InputError: no such file, not a table, no known layout, or no sound row is left.
    """
    if limit is not None and limit < 1:
        raise InputError(f"the limit of rows must be at least 1, not {limit}")
    start_s, end_s = window_s
    file = open_trace(
        path, where=where, answer_tokens=answer_tokens, count_prompt=count_prompt, seed=seed
    )
    state = TraceState(block_tokens)
    parts: list[TracePart] = []
    kept = 0
    first_s: float | None = None
    for part in file.parts(state):
        window = part
        if len(part.arrival_s) and file.in_order:
            first_s = float(part.arrival_s[0]) if first_s is None else first_s
            window = _window(part, first_s, start_s, end_s)
        parts.append(window)
        kept += len(window.numbers)
        over = (
            end_s is not None
            and first_s is not None
            and len(part.arrival_s)
            and (part.arrival_s[-1] - first_s >= end_s)
        )
        if file.in_order and (over or (limit is not None and kept >= limit)):
            break
    whole = _joined(parts)
    if not file.in_order and len(whole.numbers):
        whole = whole.take(np.argsort(whole.arrival_s, kind="stable"))
        whole = _window(whole, float(whole.arrival_s[0]), start_s, end_s)
    return _trace(file, state, whole, limit, window_s)


def _trace(
    file: TraceFile,
    state: TraceState,
    part: TracePart,
    limit: int | None,
    window: tuple[float, float | None],
) -> Trace:
    """The requests that were read as a trace that begins at 0 s."""
    failure = file.layout.without_output or ""
    if not len(part.numbers):
        raise InputError(f"{file.path}: {_why_nothing(part, failure, window)}")
    rejected, failed = part.rejected, part.failed
    if limit is not None and limit < len(part.numbers):
        part = part.take(np.arange(min(limit, len(part.numbers))))
        last = part.numbers.max()
        rejected = [rejection for rejection in rejected if rejection.row < last]
        failed = failed[failed < last]
    notes = [*file.notes]
    arrival_s = part.arrival_s - part.arrival_s[0]
    if file.layout.whole_seconds:
        arrival_s, tied = spread_ties(arrival_s)
        if tied:
            notes.append(
                f"times are whole seconds: {tied:,} requests of the same second were spread over it"
            )
    after, delays = _turns(part)
    if after is not None:
        notes.append(
            f"{int((after >= 0).sum()):,} requests are later turns of sessions: simulated, each "
            "arrives its delay after the one before it has ended"
        )
    if file.layout.name == "weka":
        notes.append("times count from the beginning of each conversation: all begin at 0 s")
    if file.layout.name == MOONCAKE_TEXT:
        notes.append("prompts are text: their tokens are those of the built-in model")
    if not arrival_s.any() and len(part.numbers) > 1:
        notes.append("all requests arrive at once: say how fast they come with --load")
    hashes, offsets = _block_numbers(part.blocks)
    size = state.block_tokens or file.layout.block_tokens
    if hashes is not None and size != file.layout.block_tokens:
        how = ", as the lengths of the prompts tell" if state.told_by_lengths else ""
        notes.append(f"blocks have {size} tokens{how}")
    return Trace(
        name=file.path.absolute().name,
        arrival_s=arrival_s,
        prompt_tokens=part.prompt_tokens,
        output_tokens=part.output_tokens,
        rejected=rejected,
        layout=file.layout.name,
        block_hashes=hashes,
        block_offsets=offsets,
        hash_tokens=0 if hashes is None else size,
        after=after,
        delay_s=delays,
        left_out={failure: len(failed)} if len(failed) else {},
        notes=tuple(notes),
    )


def _turns(part: TracePart) -> tuple[NDArray[np.int64] | None, NDArray[np.float64] | None]:
    """Whose end each request waits for and how long after it arrives; None where there is none."""
    if part.sessions is None or part.delay_s is None or np.isnan(part.delay_s).all():
        return None, None
    last: dict[str, int] = {}
    after = np.full(len(part.numbers), -1)
    for row, session in enumerate(part.sessions):
        if session is not None:
            if not np.isnan(part.delay_s[row]):
                after[row] = last.get(session, -1)
            last[session] = row
    return after, np.where(after >= 0, part.delay_s, 0.0)


def spread_ties(arrival_s: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Requests of the same whole second, spread evenly over it.

    Left together, they would make queues that were not there.

    Args:
        arrival_s: shape (n,), s, non-decreasing.

    Returns:
        shape (n,), and how many share their second with another; as given, and 0, where some times
        are not whole seconds.
    """
    if (arrival_s != np.floor(arrival_s)).any():
        return arrival_s, 0
    _, places, counts = np.unique(arrival_s, return_inverse=True, return_counts=True)
    order = np.arange(arrival_s.size) - offsets_of(counts)[:-1][places]
    return arrival_s + order / counts[places], int(counts[counts > 1].sum())


def _window(part: TracePart, first_s: float, start_s: float, end_s: float | None) -> TracePart:
    """The requests that arrive in a stretch of time, s from the first of all."""
    if start_s <= 0 and end_s is None:
        return part
    since = part.arrival_s - first_s
    within = (since >= start_s) & (since < (np.inf if end_s is None else end_s))
    return part.take(np.flatnonzero(within))


def _joined(parts: list[TracePart]) -> TracePart:
    """All of them together."""
    arrays = {
        name: np.concatenate([getattr(part, name) for part in parts])
        for name in ("numbers", "arrival_s", "prompt_tokens", "output_tokens", "failed")
    }
    return TracePart(
        **arrays,
        rows=sum(part.rows for part in parts),
        rejected=list(itertools.chain.from_iterable(part.rejected for part in parts)),
        sessions=_optional([part.sessions for part in parts]),
        delay_s=_optional([part.delay_s for part in parts]),
        blocks=_joined_lists([part.blocks for part in parts]),
    )


def _optional(arrays: list[Any]) -> Any:
    """Arrays one after another, where all parts have them."""
    return None if any(each is None for each in arrays) else np.concatenate(arrays)


def _joined_lists(lists: list[Any]) -> Any:
    """Lists of blocks one after another; as text where some are numbers and some are text."""
    import pyarrow as pa

    if any(each is None for each in lists) or not lists:
        return None
    kinds = {each.type for each in lists}
    if len(kinds) > 1:
        lists = [each.cast(pa.list_(pa.string())) for each in lists]
    return pa.concat_arrays(lists)


def _block_numbers(lists: Any) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
    """The blocks of all requests as numbers from 0, and where each request begins among them."""
    import pyarrow.compute as pc

    if lists is None:
        return None, None
    counts = pc.list_value_length(lists).fill_null(0).to_numpy()
    numbers = lists.flatten().dictionary_encode().indices.to_numpy()
    return numbers.astype(np.int64), offsets_of(counts)


def _why_nothing(part: TracePart, failure: str, window: tuple[float, float | None]) -> str:
    start, end = window
    if start > 0 or end is not None:
        return f"no request arrives from {start:g} s on" + (f", before {end:g} s" if end else "")
    if part.rejected:
        first = part.rejected[0]
        return f"none of {part.rows} rows is usable; row {first.row}: {first.reason}"
    return f"none of {part.rows} rows is usable: {failure} ({len(part.failed):,})"
