"""Policies switched on a running server: write the settings file, wait until they are active."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from lengthwise.errors import LengthwiseError
from lengthwise.settings import Settings, status_path


class SettingsSwitch:
    """The settings file of a running server, seen from outside."""

    def __init__(self, path: Path) -> None:
        """Write to `path`, the file that the server's scheduler watches."""
        self.path = path

    def apply(
        self, settings: Settings, check: Callable[[], None], timeout_s: float = 120.0
    ) -> None:
        """Make settings active, and return once they are.

        Args:
            settings: what the scheduler is to do from now on.
            check: called while waiting; raises if the server has ended.
            timeout_s: loading a predictor and compiling a policy are part of the wait.

        Raises:
            LengthwiseError: the scheduler refused the settings (its own line says why) or did not
                take them up in time.
        """
        refused_before = self._refusal()
        digest = settings.write(self.path)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status()
            if status.get("settings_sha256") == digest and status.get("state") == "active":
                return
            refused = self._refusal()
            # The words of an earlier refusal stay until something new is active.
            if refused is not None and refused != refused_before:
                raise LengthwiseError(f"the scheduler refused the settings: {refused}")
            check()
            time.sleep(0.02)
        raise LengthwiseError(
            f"the scheduler did not take up {self.path} within {timeout_s:.0f} s: "
            f"{self._refusal() or 'see the log of the server'}"
        )

    def _refusal(self) -> object:
        """Why the scheduler keeps its last good settings; None where it does not."""
        status = self.status()
        return status.get("error") if status.get("state") == "refused" else None

    def status(self) -> dict[str, object]:
        """The scheduler's status file; empty while there is none."""
        try:
            value = json.loads(status_path(self.path).read_bytes())
        except (OSError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def counters(self) -> dict[str, int]:
        """The scheduler's counters since the server started."""
        counters = self.status().get("counters")
        return dict(counters) if isinstance(counters, dict) else {}

    def growth(
        self, before: Mapping[str, int], finished: int, timeout_s: float = 2.0
    ) -> dict[str, int]:
        """By how much each counter grew, once `finished` more requests are counted.

        Args:
            before: the counters at the start.
            finished: requests that are known to have finished since; the status file may lag.
            timeout_s: after so long the counters are taken as they are.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            grown = {name: count - before.get(name, 0) for name, count in self.counters().items()}
            if grown.get("finished", 0) >= finished or time.monotonic() > deadline:
                return grown
            time.sleep(0.02)
