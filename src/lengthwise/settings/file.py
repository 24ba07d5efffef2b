"""The settings file: read, watched, and what lies beside it.

A JSON object with the fields of `Settings`. Unknown keys are refused with the nearest known name.
The scheduler watches the file, takes changes up between two steps, and says in the status file
beside it which settings are active.

An engine writes its record, its journal and its status each under a name of its own. Engines of one
data-parallel server have numbers; those of two servers with one settings file have the same.
Whoever finds a name taken takes the next one: `record`, `record/engine-0-2`, …; that it is taken, a
lock says, which ends with the process that holds it.

Whoever watches looks again and again, beside the engine: at the settings file, keeping the status
file true, and for the kill switch, a file whose presence puts the engine back into vLLM's own
order.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from lengthwise.counters import Counters
from lengthwise.errors import InputError, LengthwiseError, one_line
from lengthwise.files import parse_json, read_bounded, replace_file, take_lock
from lengthwise.settings.fields import Settings, parse_settings
from lengthwise.settings.polling import Polling

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

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
        values = parse_json(data)
    except ValueError as error:
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


_MOST_SERVERS: Final = 64


class Place:
    """A name, taken until it is closed.

    Args:
        named: the name for the first server that wants it, the second, …, from 1 on.
        lock: the lock's file, by the name.

    Attributes:
        path: the name.
    """

    def __init__(self, named: Callable[[int], Path], lock: Callable[[Path], Path]) -> None:
        self.path = first = named(1)
        self._lock: IO[bytes] | None = None
        for server in range(1, _MOST_SERVERS + 1):
            try:
                self._lock = take_lock(lock(named(server)))
            except OSError:  # nothing can be written there: whoever tries says so
                return
            if self._lock is not None:
                self.path = named(server)
                break
        if self.path != first:
            logger.warning(
                "Lengthwise: another engine of the same number has %s, this one has %s",
                first,
                self.path,
            )

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.close()


def own_folder(folder: Path, engine: int) -> Place:
    """An engine's part of a folder that settings name."""

    def named(server: int) -> Path:
        if server > 1:
            return folder / f"engine-{engine}-{server}"
        return folder / f"engine-{engine}" if engine > 0 else folder

    return Place(named, lambda path: path / ".lock")


def own_status(settings: Path, engine: int) -> Place:
    """An engine's status file."""
    return Place(
        lambda server: status_path(settings, engine, server),
        lambda path: path.with_name(f".{path.stem}.lock"),
    )


SERVER: Final = "LENGTHWISE_SERVER"  #: the environment variable with the server's URL

_POLL_S: Final = 0.1
_SIGN_OF_LIFE_S: Final = 5.0  # after so long the status file is written without news, too
_PATIENCE_S: Final = 10.0  # with a predictor that is being loaded, when closing


class SettingsWatcher:
    """Loads a settings file, then every change of it.

    Loading a predictor and compiling a policy happen in the watcher's thread; the engine only
    exchanges one object for another between two steps. A file that is broken keeps the last good
    settings and says so, in the log and in the status file.

    Args:
        path: the settings file.
        apply: makes new settings ready and offers them to the engine; raises LengthwiseError to
            refuse them. Returns what the status file says of them once they are in force.
        counters: the numbers for the status file; refusals are counted there.
        state: what else the status file says, by name.
        settle: called at every look: whether what was offered last is in force.
        engine: the engine's number among those of a data-parallel server.
        server: the server's URL; None is what the environment variable `SERVER` says.

    Raises:
        InputError: the file is not usable at the start.
    """

    def __init__(
        self,
        path: Path,
        apply: Callable[[Settings], dict[str, Any] | None],
        counters: Counters,
        state: Callable[[], dict[str, Any]] = dict,
        settle: Callable[[], bool] = lambda: True,
        engine: int = 0,
        server: str | None = None,
    ) -> None:
        self.path = path
        self._apply = apply
        self._counters = counters
        self._state = state
        self._settle = settle
        self._engine = engine
        self._server = server or os.environ.get(SERVER)
        self._seen = self._signature()
        settings, self._latest = read_settings(path)  # its digest: in force, or about to be
        self._policy = settings.policy
        self._in_force: dict[str, Any] = self._described(settings)
        self._offered: dict[str, Any] | None = None
        self._error: str | None = None
        self._doubtful = False
        self._written: dict[str, Any] = {}
        self._written_s = 0.0
        self._unwritable = False
        self._place = own_status(path, engine)
        self.write_status()
        self._polling = Polling("settings", _POLL_S, self._look)

    def close(self) -> None:
        """Stop watching, leaving the status file with the counters of now."""
        self._polling.close(_PATIENCE_S)
        self._look_at_engine()
        self._place.close()

    def write_status(self) -> None:
        """Write the status file where there is news, or none was written for a while."""
        status: dict[str, Any] = {
            **self._in_force,
            "state": "active" if self._error is None else "refused",
            "error": self._error,
            **self._state(),
            "counters": self._counters.snapshot(),
            "server": self._server,
            "engine": self._engine,
            "pid": os.getpid(),
        }
        now = time.time()
        if status == self._written and abs(now - self._written_s) < _SIGN_OF_LIFE_S:
            return
        text = json.dumps({**status, "time": round(now, 3)}, indent=2) + "\n"
        self._written, self._written_s = status, now
        try:
            replace_file(self._place.path, text.encode())
        except OSError as error:
            if not self._unwritable:
                self._unwritable = True
                logger.warning("Lengthwise: cannot write %s: %s", self._place.path, error.strerror)
        else:
            self._unwritable = False

    def _look(self) -> None:
        signature = self._signature()
        if signature != self._seen or self._doubtful:
            self._seen = signature
            self._reload()
        self._look_at_engine()

    def _look_at_engine(self) -> None:
        """Note whether the engine has taken up what was offered, and write the status."""
        try:
            if self._settle() and self._offered is not None:
                self._in_force, self._offered, self._error = self._offered, None, None
                self._policy = self._in_force["policy"]
                logger.info("Lengthwise: policy %s is active", self._policy)
            self.write_status()
        except Exception as error:  # the watcher has to be there for the next change
            logger.warning("Lengthwise: no status: %s: %s", type(error).__name__, one_line(error))

    def _reload(self) -> None:
        try:
            settings, digest = read_settings(self.path)
            if digest != self._latest:
                self._offered, self._latest = self._described(settings, digest), digest
        except LengthwiseError as error:
            self._refuse(one_line(error))
        except (Exception, SystemExit) as error:  # a policy's or a predictor's file may do anything
            self._refuse(f"{type(error).__name__}: {one_line(error)}")
        else:
            self._doubtful = False
            if self._offered is None:  # the file is again what is in force
                self._error = None

    def _described(self, settings: Settings, digest: str | None = None) -> dict[str, Any]:
        """Offer settings to the engine, and what the status file will say of them."""
        said = self._apply(settings) or {}
        return {"settings_sha256": digest or self._latest, "policy": settings.policy, **said}

    def _refuse(self, reason: str) -> None:
        """Keep the last good settings, unless a second look finds the file whole."""
        # An editor may have been in the middle of writing.
        self._doubtful = not self._doubtful
        if self._doubtful:
            return
        self._error = reason
        self._counters.settings_refused += 1
        logger.error("Lengthwise: kept the last good settings: %s", reason)

    def _signature(self) -> tuple[int, int, int] | None:
        """What changes when the file does."""
        try:
            status = self.path.stat()
        except (OSError, ValueError):
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


class OffSwitch:
    """Looks for a file, in a thread that does nothing else: no predictor that loads delays it.

    Args:
        path: the file; what is in it does not matter.
        switch: called with whether it is there, at once and whenever that changes; must not wait.
    """

    def __init__(self, path: Path, switch: Callable[[bool], None]) -> None:
        self._path = path
        self._switch = switch
        self._off = False
        self._look()  # before the first step
        self._polling = Polling("off switch", _POLL_S, self._look)

    def close(self) -> None:
        """Look no more; the order stays as it is."""
        self._polling.close()

    def _look(self) -> None:
        off = os.path.lexists(self._path)
        if off == self._off:
            return
        self._off = off
        self._switch(off)
        if off:
            logger.warning("Lengthwise: %s is there: the order is that of stock vLLM", self._path)
        else:
            logger.warning("Lengthwise: %s is gone: the settings decide again", self._path)
