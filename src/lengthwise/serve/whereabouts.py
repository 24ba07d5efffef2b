"""Where the servers of this machine keep their files and their numbers.

A folder where the engines of a server keep their numbers while it runs.

Where servers keep their files, so that a URL is enough to name one. And the kill switch from
outside: the file beside the settings, and word of the engines' answer.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.files import parse_json, take_lock
from lengthwise.settings import off_path

_PREFIX: Final = "lengthwise-engines-"
_LOCK: Final = ".lock"
_SERVER: Final = "server.json"
_LOOK_S: Final = 0.05


class EnginesFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder, held by a lock that ends with this process however it ends.

    A server that is killed leaves its folder behind. The next one takes away what nobody holds.

    Raises:
        OSError: there is no place for temporary files.
    """

    def __init__(self) -> None:
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):
                _remove_if_left(path)
        super().__init__(prefix=_PREFIX, ignore_cleanup_errors=True)
        self._lock = None
        with contextlib.suppress(OSError):  # a file system without locks: then what is left stays
            self._lock = take_lock(Path(self.name) / _LOCK)

    def cleanup(self) -> None:
        """Take the folder away, and then let go of it."""
        super().cleanup()
        if self._lock is not None:
            self._lock.close()


def _remove_if_left(path: Path) -> None:
    # Without its lock a folder is another user's, or has only just been made.
    if path.lstat().st_uid != os.getuid() or not (path / _LOCK).is_file():
        return
    lock = take_lock(path / _LOCK)
    if lock is not None:
        with lock:
            shutil.rmtree(path)


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
    _require_here(target)
    try:
        noted = parse_json((state_folder(port) / _SERVER).read_text())
        return Path(noted["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        raise InputError(
            f"`lengthwise serve` or `gateway` has noted no server of port {port} on this machine, "
            f"for {target}: name the settings file that it watches instead"
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


def _require_here(url: str) -> None:
    """Refuse a URL whose host is not this machine: a port that is also open here is another's."""
    host = urlsplit(url).hostname or ""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise InputError(f"{url}: the host {host!r} is not known here: {error}") from None
    for family, kind, protocol, _, address in addresses:
        # Only an address of this machine's own can be bound.
        with socket.socket(family, kind, protocol) as tried, contextlib.suppress(OSError):
            tried.bind(address)
            return
    raise InputError(
        f"{url} is another machine's: run this there, or name the settings file that it watches"
    )


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
    for file in sorted(path.parent.glob(f"{glob.escape(path.stem)}.status*.json")):
        try:
            status = parse_json(file.read_bytes())
            os.kill(int(status["pid"]), 0)
        except PermissionError:  # it lives, and is another user's
            found.append(status)
        except (OSError, ValueError, KeyError, TypeError):
            continue
        else:
            found.append(status)
    return sorted(found, key=lambda each: (str(each.get("server")), str(each.get("engine"))))
