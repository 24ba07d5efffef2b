"""Where the servers of this machine keep their files, so that a URL is enough to name one."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from lengthwise.errors import InputError

_SERVER: Final = "server.json"


def state_folder(port: int) -> Path:
    """Where a server keeps what should outlive it (XDG Base Directory Specification).

    A home may be shared by several machines, so the machine's name is in it as well as the port.
    """
    base = os.environ.get("XDG_STATE_HOME")
    state = Path(base) if base else Path.home() / ".local" / "state"
    return state / "lengthwise" / f"serve-{socket.gethostname()}-{port}"


def note_settings(port: int, settings: Path) -> None:
    """Note which settings file the server of a port watches.

    Raises:
        OSError: the folder cannot be written to.
    """
    folder = state_folder(port)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _SERVER).write_text(json.dumps({"settings": str(settings)}) + "\n")


def settings_file(target: str) -> Path:
    """The settings file that a path, or the URL of a server on this machine, stands for.

    Raises:
        InputError: it is the URL of another machine's server, or of one that noted nothing.
    """
    if "://" not in target:
        return Path(target)
    port = port_of(target)
    try:
        noted = json.loads((state_folder(port) / _SERVER).read_text())
        return Path(noted["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"`lengthwise serve` has noted no server of port {port} on this machine, for {target}: "
            "name the settings file that it watches instead"
        ) from None


def port_of(url: str) -> int:
    """The TCP port that a URL names.

    Raises:
        InputError: it is no URL.
    """
    try:
        parts = urlsplit(url)
        return parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError as error:
        raise InputError(f"{url!r} is no URL: {error}") from None
