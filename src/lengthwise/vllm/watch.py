"""Watches the settings file while serving and keeps the status file beside it true."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import LengthwiseError
from lengthwise.vllm.counters import Counters
from lengthwise.vllm.settings import Settings, read_settings, status_path

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

_POLL_S: Final = 0.1


class SettingsWatcher:
    """Loads a settings file, then every change of it.

    Loading a predictor and compiling a policy happen in the watcher's thread; the engine only
    exchanges one object for another between two steps. A file that is broken keeps the last good
    settings and says so, in the log and in the status file.

    Args:
        path: the settings file.
        apply: takes new settings up; raises LengthwiseError to refuse them.
        counters: the numbers for the status file; refusals are counted there.
        state: what else the status file says, by name.

    Raises:
        InputError: the file is not usable at the start.
    """

    def __init__(
        self,
        path: Path,
        apply: Callable[[Settings], None],
        counters: Counters,
        state: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.path = path
        self._apply = apply
        self._counters = counters
        self._state = state
        self._seen = self._signature()
        settings, self._active = read_settings(path)
        apply(settings)
        self._policy = settings.policy
        self._error: str | None = None
        self._doubtful = False
        self._written = ""
        self._write_status()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="lengthwise-settings", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching, leaving the status file with the final counters."""
        self._closed.set()
        self._thread.join()
        self._write_status()

    def _run(self) -> None:
        while not self._closed.wait(_POLL_S):
            signature = self._signature()
            if signature != self._seen or self._doubtful:
                self._seen = signature
                self._reload()
            self._write_status()

    def _reload(self) -> None:
        try:
            settings, digest = read_settings(self.path)
            if digest != self._active:
                self._apply(settings)
                logger.info("Lengthwise: policy %s is active", settings.policy)
        except LengthwiseError as error:
            self._refuse(str(error))
        except Exception as error:  # the engine must outlive whatever a predictor's file does
            self._refuse(f"{type(error).__name__}: {error}")
        else:
            self._policy, self._active, self._error = settings.policy, digest, None
            self._doubtful = False

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
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino

    def _write_status(self) -> None:
        status: dict[str, Any] = {
            "settings_sha256": self._active,
            "policy": self._policy,
            "state": "active" if self._error is None else "refused",
            "error": self._error,
            **self._state(),
            "counters": self._counters.snapshot(),
        }
        text = json.dumps(status, indent=2) + "\n"
        if text == self._written:
            return
        target = status_path(self.path)
        temporary = target.with_suffix(".new")
        try:
            temporary.write_text(text)
            os.replace(temporary, target)
        except OSError as error:
            logger.warning("Lengthwise: cannot write %s: %s", target, error)
        self._written = text
