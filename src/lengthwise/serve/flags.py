"""vLLM's flags as the user gave them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from lengthwise.errors import InputError


def flag_name(flag: str) -> str:
    """`--max_num_seqs=8` → `--max-num-seqs`: vLLM takes both spellings."""
    return flag.split("=", 1)[0].replace("_", "-")


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


def take_additional_config(flags: Sequence[str]) -> tuple[list[str], dict[str, object]]:
    """Split vLLM's `--additional-config JSON` from the other flags."""
    passed_on: list[str] = []
    texts: list[str] = []
    remaining = iter(flags)
    for flag in remaining:
        if not flag.startswith("--") or flag_name(flag) != "--additional-config":
            passed_on.append(flag)
        elif "=" in flag:
            texts.append(flag.split("=", 1)[1])
        else:
            texts.append(next(remaining, ""))
    if not texts:
        return passed_on, {}
    try:
        additional = json.loads(texts[-1])
    except json.JSONDecodeError as error:
        raise InputError(f"--additional-config is not JSON: {error}") from None
    if not isinstance(additional, dict):
        raise InputError("--additional-config must be a JSON object")
    return passed_on, additional
