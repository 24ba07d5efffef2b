"""vLLM's flags as a user gave them, on the command line and in the YAML file that `--config` names.

vLLM puts those of the file before those of the command line, so that the latter count. What is
looked up among a user's flags has to be looked up in the file as well.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import InputError, one_line

_CONFIG: Final = "--config"
_OURS: Final = ("host", "port")  # options of `lengthwise serve` itself


#: vLLM's short names of flags that are looked for here.
_SHORT: Final[Mapping[str, str]] = {
    "-tp": "--tensor-parallel-size",
    "-pp": "--pipeline-parallel-size",
    "-sc": "--speculative-config",
    "-asc": "--api-server-count",
}


def flag_name(flag: str) -> str:
    """`--max_num_seqs=8` → `--max-num-seqs`: vLLM takes both spellings.

    A part of one that is JSON stands for all of it: `--speculative-config.method` is one, too.
    """
    name = flag.split("=", 1)[0].split(".", 1)[0]
    return _SHORT.get(name, name.replace("_", "-"))


def given_flags(flags: Sequence[str]) -> set[str]:
    """The names of some flags, without their values."""
    names = {flag_name(flag) for flag in flags if flag.startswith("-")}
    return {name for name in names if name.startswith("--")}


def last_value(flag: str, flags: Sequence[str]) -> str | None:
    """What a flag is given as, `--flag=value` or `--flag value`; the last one counts."""
    value = None
    for place, text in enumerate(flags):
        if text.startswith("--") and flag_name(text) == flag:
            _, equals, after = text.partition("=")
            value = after if equals else next(iter(flags[place + 1 : place + 2]), None)
    return value


def seconds_of(text: str | None) -> float:
    """The number of seconds that a flag has; 0 without one, or where it is no number."""
    try:
        return max(float(text or 0.0), 0.0)
    except ValueError:
        return 0.0  # vLLM refuses it in its own words


def with_file(flags: Sequence[str]) -> list[str]:
    """These flags, and before them what the file says that they name.

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
    return [*found, *flags]


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
