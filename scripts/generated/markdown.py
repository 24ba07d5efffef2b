"""Text of the code as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from scripts import columns


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(columns.table(heads, list(rows)))


def one_line(text: str | None) -> str:
    """Text as one table cell."""
    return escape(" ".join((text or "").split()))


def code(text: str) -> str:
    """Text as code in a table cell."""
    return "`" + text.replace("|", "\\|") + "`"


def escape(text: str) -> str:
    """Keep `|` from ending a table cell, and `[` from looking like a link."""
    return text.replace("|", "\\|").replace("[", "\\[")
