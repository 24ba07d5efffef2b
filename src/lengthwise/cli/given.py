"""Options that the command line gives though nothing would look at them: refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterable

import typer

from lengthwise.errors import InputError


def refuse_given(context: typer.Context, options: Iterable[str], because: str) -> None:
    """Raise an InputError if the command line gives one of these options, whatever its value.

    Args:
        context: of the verb.
        options: as users write them, such as `--learn-every`.
        because: why they cannot be, and what to do.
    """
    names = {name: each.name for each in context.command.params for name in each.opts}
    for option in options:
        source = context.get_parameter_source(names[option] or "")
        if source is not None and source.name != "DEFAULT":
            raise InputError(f"{option} {because}")
