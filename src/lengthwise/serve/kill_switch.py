"""The kill switch from outside: the file beside the settings, and word of the engines' answer."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.settings import off_path

_LOOK_S: Final = 0.05


def switch(path: Path, off: bool, timeout_s: float) -> int:
    """Put the engines that watch a settings file into vLLM's own order, or out of it.

    Args:
        path: the settings file; it is neither read nor changed.
        off: whether the order is to be vLLM's own.
        timeout_s: for the engines to say so; 0 asks nobody.

    Returns:
        How many engines have said so; 0 where none watches the file, which then counts from the
        start of the next one.

    Raises:
        InputError: there is no such settings file, or its folder cannot be written to.
        LengthwiseError: an engine did not say so in time.
    """
    if not path.is_file():
        raise InputError(f"there is no settings file {path}: name the one that the server watches")
    mark = off_path(path)
    try:
        if off:
            mark.touch()
        else:
            mark.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot {'write' if off else 'remove'} {mark} ({error.strerror}): change the policy "
            f"in {path} itself, to fcfs and back"
        ) from None
    deadline = time.monotonic() + timeout_s
    while timeout_s > 0.0:
        states = [bool(status.get("off")) for status in statuses(path)]
        if all(state == off for state in states):
            return len(states)
        if time.monotonic() > deadline:
            silent = sum(state != off for state in states)
            raise LengthwiseError(
                f"{mark} is {'there' if off else 'gone'}, and {silent} of {len(states)} engines "
                f"have not said within {timeout_s:g} s that they follow: look at their log"
            )
        time.sleep(_LOOK_S)
    return 0


def statuses(path: Path) -> list[dict[str, Any]]:
    """What the living engines that watch a settings file say, by server and number."""
    found = []
    for file in sorted(path.parent.glob(f"{path.stem}.status*.json")):
        try:
            status = json.loads(file.read_bytes())
            os.kill(int(status["pid"]), 0)
        except PermissionError:  # it lives, and is another user's
            found.append(status)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        else:
            found.append(status)
    return sorted(found, key=lambda each: (str(each.get("server")), str(each.get("engine"))))
