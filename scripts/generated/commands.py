"""The verbs of the command line."""

from __future__ import annotations

import inspect
from typing import Any

from scripts.generated.markdown import one_line, table


def command(verb: str) -> str:
    """A verb of the command line: its help text and its options as a table."""
    import typer.main

    from lengthwise.cli.main import app

    group: Any = typer.main.get_command(app)
    found = group.commands[verb]
    usage = " ".join(["lengthwise", verb, *map(shown, arguments_of(found)), "[OPTIONS]"])
    rows = [
        (
            ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts)),
            default_of(option),
            one_line(option.help),
        )
        for option in found.params
        if option.param_type_name == "option" and "--help" not in option.opts
    ]
    arguments = [(f"`{shown(p)}`", one_line(p.help)) for p in arguments_of(found)]
    parts = [plain(found.help), f"```text\n{usage}\n```"]
    if arguments:
        parts.append(table(("argument", "meaning"), arguments))
    parts.append(table(("option", "default", "meaning"), rows))
    return "\n\n".join(parts)


def arguments_of(found: Any) -> list[Any]:
    """The positional parameters of a command."""
    return [p for p in found.params if p.param_type_name == "argument"]


def shown(argument: Any) -> str:
    """How the usage line names an argument."""
    name = argument.metavar or argument.name.upper()
    return name if argument.required or name.startswith("[") else f"[{name}]"


def default_of(option: Any) -> str:
    """An option's default as a table shows it."""
    if isinstance(option.show_default, str):
        return f"`{option.show_default}`"
    value = option.default
    if (
        value is None
        or value is False
        or callable(value)
        or isinstance(value, (list, tuple))
        or value == ""
    ):
        return ""
    return f"`{value}`"


def plain(text: str | None) -> str:
    """A command's help as Markdown: Typer's paragraph marks removed, examples as code."""
    paragraphs = inspect.cleandoc(text or "").replace("\b\n", "").split("\n\n")
    return "\n\n".join(
        f"```bash\n{inspect.cleandoc(part)}\n```"
        if part.startswith(("    ", "lengthwise "))
        else part
        for part in paragraphs
    )
