"""Read a trace from disk, part by part: no more of a large file is held than is asked for."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.workload.open_trace import TraceFile, TracePart, open_trace
from lengthwise.workload.trace import Trace
from lengthwise.workload.trace_records import MOONCAKE_TEXT, CountPrompt
from lengthwise.workload.trace_rows import TraceState, offsets_of


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
