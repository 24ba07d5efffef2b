"""The rows of a trace on disk: what their cells say, which are sound, and why the others are not.

Cells say numbers, times and lists of blocks. Whole columns are converted at once, and what cannot
be is NaN or null; only for such cells a reason is put into words, one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.files import parse_json
from lengthwise.workload.column_files import Columns
from lengthwise.workload.layouts import Layout
from lengthwise.workload.records import Rejection

LONGEST: Final = 10**8  #: tokens; what is longer is a mistake
LATEST_S: Final = 10**11  #: s; what is later, even since 1970, was meant in milliseconds or finer
SIZES: Final = (512, 64, 16, 32, 128, 256, 1024, 2048, 4096, 8, 4)  #: of a block, tokens

_AGREE: Final = 0.95  # share of requests that have to have as many blocks as a size says
_NUMBER: Final = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_OFFSET: Final = r"(Z|[+-]\d\d:?\d\d)"
_TIME: Final = r"^(19|20)\d\d-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?"
_TICKS: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # a second


def told_block_size(
    prompt_tokens: NDArray[np.float64], blocks: NDArray[np.int64], usual: int
) -> int:
    """How many tokens a block of `hash_ids` has, told from the requests themselves.

    Mooncake's own traces have 512, Dynamo exports 64, vLLM's tools 16, and none of them writes it
    down. A prompt of n tokens has ⌈n/size⌉ blocks, or ⌊n/size⌋ where a last one that is not full is
    left out.

    Args:
        prompt_tokens: shape (n,), NaN where it is not known.
        blocks: shape (n,), how many each prompt has, 0 where it has none.
        usual: what the layout's authors have; it is taken where it fits, and where nothing does.
    """
    known = (blocks > 0) & (prompt_tokens >= 1)
    tokens, counts = prompt_tokens[known], blocks[known]
    if not counts.size:
        return usual
    for size in (usual, *(size for size in SIZES if size != usual)):
        whole, begun = np.floor(tokens / size), np.ceil(tokens / size)
        # Of blocks that are all begun the last one tells the size; of full ones, none does.
        if ((counts == begun) | ((counts == whole) & (whole > 1))).mean() >= _AGREE:
            return size
    return usual


def read_numbers(column: Any) -> NDArray[np.float64]:
    """Read a column as numbers.

    Args:
        column: pyarrow.Array of shape (n,), of any type.

    Returns:
        Shape (n,), NaN where a cell is missing or no number.
    """
    import pyarrow as pa

    if _is_text(column):
        values = _cast(_trimmed(column), pa.float64(), _NUMBER)
    elif pa.types.is_integer(column.type) or pa.types.is_floating(column.type):
        values = column.cast(pa.float64(), safe=False)
    elif pa.types.is_decimal(column.type):
        values = column.cast(pa.float64())
    else:
        values = pa.nulls(len(column), pa.float64())
    numbers: NDArray[np.float64] = values.to_numpy(zero_copy_only=False)
    return numbers


class Origin:
    """When dates begin to count: at the first one that is read, however often more are read."""

    def __init__(self) -> None:
        self._first: tuple[int, str] | None = None

    def seconds(self, times: Any) -> NDArray[np.float64]:
        """Timestamps as s since the first of all: exact, which s since 1970 would not be.

        Args:
            times: pyarrow.Array of shape (n,), of timestamps.
        """
        import pyarrow as pa

        ticks = times.cast(pa.int64())
        unit: str = times.type.unit
        known = ticks.is_valid().to_numpy(zero_copy_only=False)
        counts = ticks.fill_null(0).to_numpy()
        seconds = np.full(len(counts), np.nan)
        if known.any():
            if self._first is None:
                self._first = int(counts[known][0]), unit
            first, first_unit = self._first
            if first_unit != unit:
                first = first * _TICKS[unit] // _TICKS[first_unit]
            seconds[known] = (counts[known] - first) / _TICKS[unit]
        return seconds


def read_seconds(column: Any, unit_s: float, origin: Origin) -> NDArray[np.float64]:
    """Read a column as times.

    Args:
        column: pyarrow.Array of shape (n,): numbers, ISO dates and times, or timestamps.
        unit_s: what a number counts, in s.
        origin: of dates, the same for all parts of a column.

    Returns:
        Shape (n,), s from some origin, NaN where a cell is missing or no time.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_timestamp(column.type):
        return origin.seconds(column)
    numbers = read_numbers(column) * unit_s
    if not _is_text(column) or np.isfinite(numbers).all():
        return numbers
    # Where offsets are given, all times are brought to UTC; where none is, they are left alone.
    text = _trimmed(column)
    zoned = _cast(text, pa.timestamp("ns", "UTC"), f"{_TIME}{_OFFSET}$")
    local = _cast(text, pa.timestamp("ns"), f"{_TIME}$").cast(pa.timestamp("ns", "UTC"))
    dates = origin.seconds(pc.coalesce(zoned, local))
    return max(numbers, dates, key=lambda times: int(np.isfinite(times).sum()))


def read_block_lists(column: Any) -> Any:
    """Read a column as lists of block ids.

    Args:
        column: pyarrow.Array of shape (n,): lists of integers or strings, or such lists as JSON.

    Returns:
        A pyarrow list array of shape (n,), null where a cell is missing or no such list.
    """
    import pyarrow as pa

    if _is_text(column):
        return pa.array(map(_list_in, column.to_pylist()), pa.list_(pa.string()))
    kind = column.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return pa.nulls(len(column), pa.list_(pa.string()))
    if not (pa.types.is_integer(kind.value_type) or pa.types.is_string(kind.value_type)):
        return pa.array(map(_list_of, column.to_pylist()), pa.list_(pa.string()))
    return column


def why_no_length(name: str, cell: object) -> str:
    """Why a cell is no number of tokens from 1 to LONGEST."""
    if cell is None or cell == "":
        return f"{name} is missing"
    number = _number(cell)
    if number is None:
        return f"{name} is {cell!r}, not a number"
    if math.isnan(number):
        return f"{name} is NaN"
    if number < 0:
        return f"{name} is negative: {cell}"
    if number == 0:
        return f"{name} is 0"
    if number > LONGEST:
        return f"{name} is too large to be a number of tokens: {float(number):g}"
    return f"{name} is not a whole number of tokens: {cell}"


def why_no_time(name: str, cell: object) -> str:
    """Why a cell is no time that a request can arrive at."""
    if cell is None or cell == "":
        return f"{name} is missing"
    number = _number(cell)
    if number is not None and math.isnan(number):
        return f"{name} is NaN"
    if number is not None and abs(number) > LATEST_S:
        return f"{name} is too large for a time in seconds: {cell}"
    return f"{name} is {cell!r}, not a time in seconds or a date and time such as in ISO 8601"


def _is_text(column: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(column.type) or pa.types.is_large_string(column.type))


def _trimmed(column: Any) -> Any:
    import pyarrow.compute as pc

    return pc.utf8_trim_whitespace(column)


def _cast(text: Any, kind: Any, pattern: str) -> Any:
    """Text as another type; null where it does not match or cannot be converted."""
    import pyarrow as pa
    import pyarrow.compute as pc

    matching = pc.if_else(pc.match_substring_regex(text, pattern), text, pa.scalar(None, text.type))
    try:
        return matching.cast(kind)
    except pa.ArrowInvalid:  # a date such as the 30th of February
        if len(text) == 1:
            return pa.nulls(1, kind)
        middle = len(text) // 2
        halves = (text[:middle], text[middle:])
        return pa.concat_arrays([_cast(half, kind, pattern) for half in halves])


def _said(cell: Any) -> object:
    """What an Arrow cell says; as text where Python has no such time."""
    import pyarrow as pa

    try:
        return cell.as_py()
    except (ValueError, OverflowError):
        return cell.cast(pa.string()).as_py()


def _number(cell: object) -> float | None:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    except OverflowError:
        return math.inf


def _list_in(text: str | None) -> list[str] | None:
    try:
        return None if text is None else _list_of(parse_json(text))
    except ValueError:
        return None


def _list_of(cell: object) -> list[str] | None:
    if not isinstance(cell, list) or not all(map(_is_id, cell)):
        return None
    # JSON may hold half a surrogate pair, which Arrow does not.
    return [str(block).encode("utf-8", "replace").decode() for block in cell]


def _is_id(block: object) -> bool:
    if isinstance(block, float):  # one fraction makes Arrow read all ids of a file as fractions
        return block.is_integer()
    return isinstance(block, int | str) and not isinstance(block, bool)


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
                    self._reasons[row] = why(name, _said(cells[row]))

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
