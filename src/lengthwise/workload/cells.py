"""What the cells of a trace say: numbers, times and lists of blocks.

Whole columns are converted at once, and what cannot be is NaN or null; only for such cells a reason
is put into words, one by one.
"""

from __future__ import annotations

import json
import math
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

SIZES: Final = (512, 64, 16, 32, 128, 256, 1024, 2048, 4096, 8, 4)  #: tokens
_AGREE: Final = 0.95  # share of requests that have to have as many blocks as a size says


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


LONGEST: Final = 10**8  #: tokens; what is longer is a mistake
LATEST_S: Final = 10**11  #: s; what is later, even since 1970, was meant in milliseconds or finer

_NUMBER: Final = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$"
_OFFSET: Final = r"(Z|[+-]\d\d:?\d\d)"
_TIME: Final = r"^(19|20)\d\d-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d{1,9})?)?)?"
_TICKS: Final = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}  # a second


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


def _number(cell: object) -> float | None:
    try:
        return float(cell)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    except OverflowError:
        return math.inf


def _list_in(text: str | None) -> list[str] | None:
    try:
        return None if text is None else _list_of(json.loads(text))
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
