"""Rows of a table whose columns may hold anything, or be missing."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

_CELLS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)


def strange_rows(*columns: str) -> st.SearchStrategy[list[dict[str, Any]]]:
    """One to eight rows with some of these columns."""
    row = st.fixed_dictionaries({}, optional=dict.fromkeys(columns, _CELLS))
    return st.lists(row, min_size=1, max_size=8)
