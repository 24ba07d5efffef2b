"""Why rows, columns and files are not taken."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from lengthwise.errors import InputError


class Rejection(NamedTuple):
    """A row that was left out."""

    row: int  #: its number in the file, from 1; a CSV header is not counted
    reason: str


def refuse_rejected(name: str, rejected: Sequence[Rejection], what: str) -> None:
    """Raise an InputError if any row of a file was malformed, naming the first."""
    if rejected:
        first = rejected[0]
        raise InputError(
            f"{name}, row {first.row}: {first.reason} (malformed rows in all: {len(rejected)}); "
            f"mend the {what}, or leave such rows out with --skip-malformed"
        )


class UnknownLayoutError(InputError):
    """The columns of a file say nothing that is known, and perhaps something else in another role.

    A file without prompts may be a trace, and one without arrival times may have prompts.
    """


class UnusableError(InputError):
    """A file of a known layout that lacks something; the message says what, and what would help."""

    def __init__(self, message: str, layout: str, source: str) -> None:
        """Say what is missing.

        Args:
            message: the file, what it lacks, and what to do.
            layout: the name of the layout.
            source: whose it is, in Markdown.
        """
        super().__init__(message)
        self.layout, self.source = layout, source


def require_column(path: Path, names: Sequence[str], name: str) -> None:
    """Refuse the name of a column that a table has not.

    Raises:
        InputError: names the nearest, and all that there are.
    """
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise InputError(f"{path}: no column {name!r}: {hint}the columns are {', '.join(names)}")
