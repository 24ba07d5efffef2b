"""`lengthwise off` and `lengthwise on`: the kill switch."""

from __future__ import annotations

from typing import Annotated

import typer

from lengthwise.cli.options import JsonOption

Target = Annotated[
    str,
    typer.Argument(
        help="The settings file that the server watches, or the URL of a server that `lengthwise "
        "serve` started on this machine.",
        metavar="SETTINGS|URL",
        show_default=False,
    ),
]
Timeout = Annotated[
    float, typer.Option(min=0, help="Seconds for the engines to follow; 0 does not wait.")
]
AsJson = JsonOption


def off(target: Target, timeout: Timeout = 30.0, json: AsJson = False) -> None:
    """Put a running server back into vLLM's own order, from its next step on.

    A file `SETTINGS.off` beside the settings says so; the settings themselves stay as they are.
    `lengthwise on` takes it away. Predictors stay loaded, so that the way back takes a step, too.

    Example: `lengthwise off http://localhost:8000`
    """
    _switch(target, True, timeout, json)


def on(target: Target, timeout: Timeout = 30.0, json: AsJson = False) -> None:
    """Let the settings of a running server decide again, after `lengthwise off`.

    Example: `lengthwise on http://localhost:8000`
    """
    _switch(target, False, timeout, json)


def _switch(target: str, off: bool, timeout_s: float, as_json: bool) -> None:
    from lengthwise.cli.output import print_json
    from lengthwise.serve.whereabouts import settings_file, switch

    path = settings_file(target)
    engines = switch(path, off, timeout_s)
    if as_json:
        print_json({"settings": str(path), "off": off, "engines": engines}, pretty=False)
        return
    order = "vLLM's own order" if off else "the order of the settings"
    who = f"{engines} engine{'s'[: engines != 1]} in" if engines else "no engine answers yet for"
    print(f"{path}: {who} {order}")
