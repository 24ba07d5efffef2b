"""The YAML file that vLLM's `--config` names, and what it says as flags.

vLLM puts them before those of the command line, so that those go first. What is looked up among a
user's flags has to be looked up there as well.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import InputError, one_line

_CONFIG: Final = "--config"
_OURS: Final = ("host", "port")  # options of `lengthwise serve` itself


def flags_in_file(flags: Sequence[str]) -> list[str]:
    """What the file that some flags name says, as flags; none where they name no file.

    A model in it is left out, as vLLM does where the command line names one.

    Raises:
        InputError: there is no such file, or it holds no options.
    """
    found: list[str] = []
    for name, value in _options_in_file(flags).items():
        if isinstance(value, bool):
            found.append(f"--{name}" if value else f"--no-{name}")
        elif name != "model":
            values = value if isinstance(value, list) else [value]
            texts = [json.dumps(each) if isinstance(each, dict) else str(each) for each in values]
            found += [f"--{name}", *texts]
    return found


def require_same_address(flags: Sequence[str], host: str, port: int) -> None:
    """Raise InputError where the file says another address than is listened at."""
    options = _options_in_file(flags)
    for name, ours in zip(_OURS, (host, port), strict=True):
        if str(options.get(name, ours)) != str(ours):
            raise InputError(
                f"the file of {_CONFIG} says {name} {options[name]}, where nobody would listen: "
                f"say so with --{name} {options[name]}, or take it out of the file"
            )


def _options_in_file(flags: Sequence[str]) -> dict[str, Any]:
    """What the file says, by names with dashes."""
    if any(flag.startswith(f"{_CONFIG}=") for flag in flags):
        raise InputError(f"vLLM ignores {_CONFIG}=FILE: write {_CONFIG} FILE, without =")
    if _CONFIG not in flags:
        return {}
    path = Path(next(iter(flags[flags.index(_CONFIG) + 1 :]), ""))
    import yaml  # vLLM brings it

    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"{_CONFIG} {path}: cannot be read: {one_line(error)}") from None
    if not isinstance(options, dict):
        raise InputError(f"{_CONFIG} {path}: it holds no options: write NAME: VALUE lines")
    return {str(name).replace("_", "-"): value for name, value in options.items()}
