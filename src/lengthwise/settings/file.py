"""The settings file, and the names of the files beside it.

A JSON object with the fields of `Settings`. Unknown keys are refused with the nearest known name.
The scheduler watches the file, takes changes up between two steps, and says in the status file
beside it which settings are active.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import InputError, one_line
from lengthwise.files import read_bounded
from lengthwise.settings.fields import Settings, parse_settings

MOST_BYTES: Final = 1 << 20  #: of a settings file: one that is larger is something else


def status_path(path: Path, engine: int = 0, server: int = 1) -> Path:
    """The status file that belongs to a settings file: each engine of a server has its own.

    Args:
        path: the settings file.
        engine: the engine's number.
        server: 2 for the second server that watches the same file, and so on.
    """
    number = f".{engine}" if engine else ""
    return path.with_name(f"{path.stem}.status{number}{f'-{server}' if server > 1 else ''}.json")


def off_path(path: Path) -> Path:
    """The file whose mere presence switches the policy of a settings file off."""
    return path.with_name(f"{path.name}.off")


def read_settings(path: Path) -> tuple[Settings, str]:
    """Read and check a settings file.

    Returns:
        The settings and the SHA-256 of the bytes they were read from.

    Raises:
        InputError: the file is missing or not a JSON object, or something in it is wrong.
    """
    data = _read_bytes(path)
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"the settings file {path} is not JSON: {one_line(error)}") from error
    if not isinstance(values, dict):
        raise InputError(f"the settings file {path} must hold a JSON object")
    settings = parse_settings(values)
    # As in any file that names another: relative to itself, not to where the engine started.
    folders = {
        name: str((path.parent / given).resolve())
        for name in ("predictor", "stand_in")
        if (given := getattr(settings, name)) is not None and (path.parent / given).is_dir()
    }
    settings = settings.model_copy(update=folders)
    if settings.length_log is not None:
        folder = str((path.parent / settings.length_log.folder).resolve())
        log = settings.length_log.model_copy(update={"folder": folder})
        settings = settings.model_copy(update={"length_log": log})
    if settings.journal is not None:
        folder = str((path.parent / settings.journal).resolve())
        settings = settings.model_copy(update={"journal": folder})
    return settings, hashlib.sha256(data).hexdigest()


def settings_of(additional_config: Any) -> Path | Settings:
    """What vLLM's `additional_config` says of settings: the file, or the settings themselves.

    A path that begins with `$` is read from that environment variable: `additional_config` is part
    of the key under which vLLM keeps compiled graphs, so that a path in it would compile them anew.

    Raises:
        InputError: it says nothing of them, or they are wrong.
    """
    ours = (additional_config or {}).get("lengthwise")
    given = ours.get("settings") if isinstance(ours, dict) else None
    if isinstance(given, dict):
        return parse_settings(given)
    if not isinstance(given, str) or not given:
        raise InputError(
            "the Lengthwise scheduler needs --additional-config "
            '\'{"lengthwise": {"settings": "FILE"}}\''
        )
    if not given.startswith("$"):
        return Path(given)
    path = os.environ.get(given[1:])
    if not path:
        raise InputError(
            f"additional_config names the settings file by the environment variable {given[1:]}, "
            "which is not set: set it to the file's path"
        )
    return Path(path)


def _read_bytes(path: Path) -> bytes:
    try:
        return read_bounded(path, MOST_BYTES)
    except OSError as error:
        raise InputError(f"cannot read the settings file {path}: {error.strerror}") from error
    except ValueError as error:
        raise InputError(
            f"the settings file {path} {error}: name a file that holds JSON"
        ) from error
