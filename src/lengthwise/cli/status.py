"""`lengthwise status`: what the engines that watch a settings file say of themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from lengthwise.cli.options import JsonOption


def status(
    target: Annotated[
        str,
        typer.Argument(
            help="The settings file that servers watch, or the URL of a server that `lengthwise "
            "serve` started on this machine, for its engines alone.",
            metavar="SETTINGS|URL",
            show_default=False,
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Say what the engines of this machine that watch a settings file do: one line for each.

    Which server each belongs to, its number there, its process, the policy in force, and whether it
    refused what the file says now.

    Example: `lengthwise status settings.json`
    """
    from lengthwise.cli.output import print_json
    from lengthwise.errors import LengthwiseError
    from lengthwise.serve.whereabouts import port_of, settings_file, statuses

    path = settings_file(target)
    found = statuses(path)
    if "://" in target:
        found = [each for each in found if _port(each) == port_of(target)]
    if json:
        print_json(found, pretty=False)
    for each in [] if json else found:
        print(_in_words(each))
    if not found:
        raise LengthwiseError(f"no engine that watches {path} says anything: is the server up?")


def _port(status: Mapping[str, Any]) -> int | None:
    from lengthwise.serve.whereabouts import port_of

    return port_of(str(status["server"])) if status.get("server") else None


def _in_words(status: Mapping[str, Any]) -> str:
    where = status.get("server") or "a server"
    parts = [f"policy {status.get('policy')}"]
    if status.get("off"):
        parts.append("switched off")
    if status.get("shadow"):
        parts.append("in shadow")
    if status.get("below_tau_floor"):
        parts.append("predictions too wrong to be believed")
    for name, reason in (status.get("switched_off") or {}).items():
        parts.append(f"{name} is off: {reason}")
    if status.get("state") == "refused":
        parts.append(f"refused the file: {status.get('error')}")
    counters = status.get("counters") or {}
    parts.append(f"{counters.get('finished', 0):,} requests ended")
    return f"{where}, engine {status.get('engine')}, process {status['pid']}: {', '.join(parts)}"
