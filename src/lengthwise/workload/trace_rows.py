"""The rows of a trace on disk: which are sound, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.workload.cells import (
    LATEST_S,
    LONGEST,
    Origin,
    read_block_lists,
    read_numbers,
    read_seconds,
    told_block_size,
    why_no_length,
    why_no_time,
)
from lengthwise.workload.columns import Columns
from lengthwise.workload.layouts import Layout
from lengthwise.workload.rejections import Rejection


class TraceState:
    """What one part of a file has to know of those before it."""

    def __init__(self, block_tokens: int | None) -> None:
        self.origin = Origin()
        self.latest_s = -np.inf  #: the latest arrival
        self.block_tokens = block_tokens  #: of a block, None until it is told
        self.told_by_lengths = False  #: whether it was told from the requests
        self.ended: dict[str, float] = {}  #: the last arrival of each session, s


class TraceRows:
    """The n rows of a part of a file. Whole columns are checked; only bad rows are looked at alone.

    Attributes:
        arrival_s: shape (n,), s from some origin, NaN where there is none.
        prompt_tokens: shape (n,), NaN where there is no number.
        output_tokens: shape (n,), NaN where there is no number.
        sound: the places of the sound rows among the n, in their order.
        rejected: malformed rows, with the first thing that is wrong with each.
        failed: shape (n,), rows that are sound, and requests that got no answer.
        delay_s: shape (n,), from the end of the session's last turn to a row that has no time of
            its own; NaN for others. None without sessions.
    """

    def __init__(
        self,
        columns: Columns,
        layout: Layout,
        state: TraceState,
        answer_tokens: int | None = None,
    ) -> None:
        self._columns = columns
        self._layout = layout
        self._state = state
        self._reasons: dict[int, str] = {}
        self.delay_s: NDArray[np.float64] | None = None
        count = len(columns.numbers)
        self.arrival_s = self._arrivals()
        self.output_tokens = read_numbers(columns.cells(layout.output))
        if answer_tokens is not None:
            unknown = np.isnan(self.output_tokens)
            self.output_tokens = np.where(unknown, answer_tokens, self.output_tokens)
        self.failed = np.zeros(count, dtype=np.bool_)
        if layout.without_output is not None:
            # A request without an answer failed, whatever else its row says.
            self.failed = self.output_tokens == 0
        self._refuse(~(np.abs(self.arrival_s) <= LATEST_S), layout.arrival, why_no_time)
        self.prompt_tokens = read_numbers(columns.cells(layout.prompt))
        self._refuse(~_is_length(self.prompt_tokens), layout.prompt, why_no_length)
        self._refuse(~_is_length(self.output_tokens), layout.output, why_no_length)
        self.blocks = self._block_lists()
        if layout.by_arrival and not self._has_sessions:
            self._refuse_back_in_time()
        self.sound = self._without_reasons()
        malformed = (
            Rejection(int(columns.numbers[row]), why) for row, why in self._reasons.items()
        )
        self.rejected = sorted([*columns.unreadable, *malformed])

    @property
    def _has_sessions(self) -> bool:
        """Whether later turns wait for earlier ones: they have a delay, or no time."""
        layout, names = self._layout, self._columns.names
        if layout.delay is None or layout.session not in names:
            return False
        return layout.delay in names or layout.arrival not in names or self._some_timeless

    @cached_property
    def _some_timeless(self) -> bool:
        return bool(self._columns.cells(self._layout.arrival).null_count)

    def sessions(self) -> list[str | None] | None:
        """Whose request each row is; None where the layout does not say."""
        name = self._layout.session
        if name is None or name not in self._columns.names:
            return None
        return [
            None if cell is None else str(cell) for cell in self._columns.read(name).to_pylist()
        ]

    def _arrivals(self) -> NDArray[np.float64]:
        columns, layout = self._columns, self._layout
        if layout.timeless and layout.arrival not in columns.names and not self._has_sessions:
            return np.zeros(len(columns.numbers))
        times = read_seconds(columns.cells(layout.arrival), layout.unit_s, self._state.origin)
        sessions = self.sessions()
        if not self._has_sessions or sessions is None or layout.delay is None:
            return times
        # A later turn of a session has a delay instead of a time, or comes at once. Until it is
        # known when the turn before it ended, it arrives its delay after that one arrived.
        cells = columns.cells(layout.delay)
        given = cells.is_valid().to_numpy(zero_copy_only=False)
        delays = np.where(given, read_numbers(cells) * layout.unit_s, 0.0)
        ended = self._state.ended
        self.delay_s = np.full(len(times), np.nan)
        for row, session in enumerate(sessions):
            if session is None:
                continue
            if np.isnan(times[row]) and session in ended and delays[row] >= 0:
                times[row] = ended[session] + delays[row]
                self.delay_s[row] = delays[row]
            elif session not in ended and layout.arrival not in columns.names:
                times[row] = 0.0
            if not np.isnan(times[row]):
                ended[session] = float(times[row])
        return times

    def _refuse(
        self, rows: NDArray[np.bool_], name: str, why: Callable[[str, object], str]
    ) -> None:
        """Note why rows are malformed, if nothing is known against them yet."""
        rows = rows & ~self.failed
        if rows.any():
            cells = self._columns.cells(name)
            for row in np.flatnonzero(rows).tolist():
                if row not in self._reasons:
                    self._reasons[row] = why(name, cells[row].as_py())

    def _without_reasons(self) -> NDArray[np.int64]:
        sound = ~self.failed
        sound[list(self._reasons)] = False
        return np.flatnonzero(sound)

    def _block_lists(self) -> Any:
        """The lists of block ids, or None where the trace has none."""
        import pyarrow as pa
        import pyarrow.compute as pc

        name = self._layout.blocks
        if name is None or name not in self._columns.names:
            return None
        cells = self._columns.read(name)
        if pa.types.is_null(cells.type):
            return pa.nulls(len(cells), pa.list_(pa.string()))
        lists = read_block_lists(cells)
        missing = cells.is_null().to_numpy(zero_copy_only=False)
        unreadable = lists.is_null().to_numpy(zero_copy_only=False) & ~missing
        parents = pc.list_parent_indices(lists).to_numpy()
        unreadable[parents[lists.flatten().is_null().to_numpy(zero_copy_only=False)]] = True
        self._refuse(unreadable, name, lambda name, _: f"{name} is not a list of block ids")
        counts = pc.list_value_length(lists).fill_null(0).to_numpy()
        state = self._state
        if state.block_tokens is None and self._layout.block_size is not None:
            said = read_numbers(self._columns.cells(self._layout.block_size))
            sizes = said[(said >= 1) & (said <= LONGEST)]
            state.block_tokens = int(sizes[0]) if sizes.size else None
        if state.block_tokens is None and counts.any():
            usual = self._layout.block_tokens
            too_many = (counts > np.ceil(self.prompt_tokens / usual)).mean() > 0.5
            state.block_tokens = usual
            if self._layout.blocks_vary or too_many:
                state.block_tokens = told_block_size(self.prompt_tokens, counts, usual)
                state.told_by_lengths = True
        size = state.block_tokens or self._layout.block_tokens
        self._refuse(
            counts > np.ceil(self.prompt_tokens / size),
            name,
            lambda name, _: (
                f"{name} has more blocks of {size} tokens than the prompt fills: if "
                "blocks have another size, say so with --block-tokens"
            ),
        )
        return lists

    def _refuse_back_in_time(self) -> None:
        rows = self._without_reasons()
        if not rows.size:
            return
        times = self.arrival_s[rows]
        latest = np.maximum.accumulate(np.maximum(times, self._state.latest_s))
        back = np.zeros(len(self._columns.numbers), dtype=np.bool_)
        back[rows] = times < latest
        self._state.latest_s = float(latest[-1])
        self._refuse(
            back,
            self._layout.arrival,
            lambda name, cell: f"{name} goes back in time, to {cell}: sort the rows by arrival",
        )


def _is_length(numbers: NDArray[np.float64]) -> NDArray[np.bool_]:
    sound: NDArray[np.bool_] = (
        (numbers >= 1) & (numbers <= LONGEST) & (numbers == np.floor(numbers))
    )
    return sound


def offsets_of(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Where each of some parts begins when they are put one after another, and where all end."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
