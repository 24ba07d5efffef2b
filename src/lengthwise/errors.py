"""The errors that people see.

    LengthwiseError          one line; the command exits with 1 (a run failed)
    └── InputError           one line that says what is wrong and how to mend it; exit 2

The command line prints the message alone, without a traceback. Everything else that escapes is a
defect in Lengthwise.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Final

_MOST_CHARACTERS: Final = 1000  # of what is repeated in a message


class LengthwiseError(Exception):
    """A run that failed: reported in one line, exit code 1."""

    exit_code = 1


class InputError(LengthwiseError):
    """Something the user gave is wrong: one line with the fix, exit code 2."""

    exit_code = 2


def missing_extra(package: str, extra: str) -> InputError:
    """The error for an optional dependency that is not installed.

    Args:
        package: the module that could not be imported.
        extra: the extra of this project that brings it.
    """
    return InputError(f"{package} is not installed: pip install 'lengthwise[{extra}]'")


def unknown_name(kind: str, name: str, known: Iterable[str]) -> InputError:
    """The error for a name that is not in a list, with the nearest one and the whole list."""
    names = sorted(known)
    near = difflib.get_close_matches(name[:_MOST_CHARACTERS], names, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"unknown {kind} {one_line(name, repr)}: {hint}known are {', '.join(names)}")


def one_line(said: object, form: Callable[[object], str] = str) -> str:
    """What an error or a user said, as one line of bounded length that fits into a message.

    Args:
        said: the error or the value.
        form: `repr` for a value that is shown as it would be written.
    """
    try:
        line = " ".join(form(said).split())
    except Exception:  # an integer too long to be printed, or an exception that cannot be
        return f"a {type(said).__name__} that cannot be shown"
    return line if len(line) <= _MOST_CHARACTERS else line[:_MOST_CHARACTERS] + " …"
