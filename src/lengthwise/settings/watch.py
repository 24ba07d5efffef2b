"""Watches the settings file while serving, keeps the status file beside it true, and the kill
switch: a file whose presence puts the engine back into vLLM's own order."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lengthwise.counters import Counters
from lengthwise.errors import LengthwiseError, one_line
from lengthwise.files import replace_file
from lengthwise.settings.fields import Settings
from lengthwise.settings.file import read_settings
from lengthwise.settings.place import own_status
from lengthwise.settings.polling import Polling

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

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
    ) -> None:
        self.path = path
        self._apply = apply
        self._counters = counters
        self._state = state
        self._settle = settle
        self._engine = engine
        self._server = os.environ.get(SERVER)
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
