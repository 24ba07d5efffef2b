"""The rows of a trace on disk: which are sound, and why the others are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.workload.cells import (
    LATEST_S,
    LONGEST,
    read_block_lists,
    read_numbers,
    read_seconds,
    why_no_length,
    why_no_time,
)
from lengthwise.workload.columns import Columns
from lengthwise.workload.layouts import Layout
from lengthwise.workload.table import Rejection


class TraceRows:
    """The n rows of a file. Whole columns are checked at once; only bad rows are looked at alone.

    Attributes:
        arrival_s: shape (n,), s from some origin, NaN where there is none.
        prompt_tokens: shape (n,), NaN where there is no number.
        output_tokens: shape (n,), NaN where there is no number.
        sound: the places of the sound rows among the n, in the order of arrival.
        rejected: all other rows of the file, with the first thing that is wrong with each.
    """

    def __init__(self, columns: Columns, layout: Layout) -> None:
        self._columns = columns
        self._layout = layout
        self._reasons: dict[int, str] = {}
        self.arrival_s = read_seconds(columns.read(layout.arrival), layout.unit_s)
        self._refuse(~(np.abs(self.arrival_s) <= LATEST_S), layout.arrival, why_no_time)
        self.prompt_tokens = self._lengths(layout.prompt, why_no_length)
        self.output_tokens = self._lengths(layout.output, self._why_no_output)
        self._blocks = self._block_lists()
        if layout.by_arrival:
            self._refuse_back_in_time()
        self.sound = self._without_reasons()
        if not layout.by_arrival:
            self.sound = self.sound[np.argsort(self.arrival_s[self.sound], kind="stable")]
        malformed = (
            Rejection(int(columns.numbers[row]), why) for row, why in self._reasons.items()
        )
        self.rejected = sorted([*columns.unreadable, *malformed])

    def block_numbers(
        self, rows: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64] | None, NDArray[np.int64] | None]:
        """The blocks of some rows as numbers from 0, and where each row begins among them.

        None and None where the trace has no blocks.
        """
        import pyarrow.compute as pc

        if self._blocks is None:
            return None, None
        lists = self._blocks.take(rows)
        counts = pc.list_value_length(lists).fill_null(0).to_numpy()
        numbers = lists.flatten().dictionary_encode().indices.to_numpy()
        return numbers.astype(np.int64), offsets_of(counts)

    def _refuse(
        self, rows: NDArray[np.bool_], name: str, why: Callable[[str, object], str]
    ) -> None:
        """Note why rows are malformed, if nothing is known against them yet."""
        if rows.any():
            cells = self._columns.read(name)
            for row in np.flatnonzero(rows).tolist():
                if row not in self._reasons:
                    self._reasons[row] = why(name, cells[row].as_py())

    def _without_reasons(self) -> NDArray[np.int64]:
        sound = np.ones(len(self._columns.numbers), dtype=np.bool_)
        sound[list(self._reasons)] = False
        return np.flatnonzero(sound)

    def _lengths(self, name: str, why: Callable[[str, object], str]) -> NDArray[np.float64]:
        lengths = read_numbers(self._columns.read(name))
        sound = (lengths >= 1) & (lengths <= LONGEST) & (lengths == np.floor(lengths))
        self._refuse(~sound, name, why)
        return lengths

    def _why_no_output(self, name: str, cell: object) -> str:
        reason = why_no_length(name, cell)
        meaning = self._layout.without_output
        return f"{reason}: {meaning}" if meaning and reason == f"{name} is 0" else reason

    def _block_lists(self) -> Any:
        """The lists of block ids, or None where the trace has none."""
        import pyarrow.compute as pc

        name = self._layout.blocks
        if name is None or name not in self._columns.names:
            return None
        cells = self._columns.read(name)
        lists = read_block_lists(cells)
        missing = cells.is_null().to_numpy(zero_copy_only=False)
        unreadable = lists.is_null().to_numpy(zero_copy_only=False) & ~missing
        parents = pc.list_parent_indices(lists).to_numpy()
        unreadable[parents[lists.flatten().is_null().to_numpy(zero_copy_only=False)]] = True
        self._refuse(unreadable, name, lambda name, _: f"{name} is not a list of block ids")
        size = self._layout.block_tokens
        counts = pc.list_value_length(lists).fill_null(0).to_numpy()
        self._refuse(
            counts > np.ceil(self.prompt_tokens / size),
            name,
            lambda name, _: f"{name} has more blocks of {size} tokens than the prompt fills",
        )
        return lists

    def _refuse_back_in_time(self) -> None:
        rows = self._without_reasons()
        times = self.arrival_s[rows]
        back = np.zeros(len(self._columns.numbers), dtype=np.bool_)
        back[rows] = times < np.maximum.accumulate(times)
        self._refuse(
            back,
            self._layout.arrival,
            lambda name, cell: f"{name} goes back in time, to {cell}: sort the rows by arrival",
        )


def offsets_of(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Where each of some parts begins when they are put one after another, and where all end."""
    offsets = np.zeros(len(counts) + 1, dtype=np.int64)
    np.cumsum(counts, out=offsets[1:])
    return offsets
