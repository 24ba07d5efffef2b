"""Policies switched on a running server: write the settings file, wait until they are active."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from lengthwise.errors import LengthwiseError
from lengthwise.vllm.settings import Settings, status_path


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
        digest = settings.write(self.path)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            status = self.status()
            if status.get("settings_sha256") == digest:
                if status.get("state") == "active":
                    return
                raise LengthwiseError(f"the scheduler refused the settings: {status.get('error')}")
            check()
            time.sleep(0.02)
        raise LengthwiseError(
            f"the scheduler did not take up {self.path} within {timeout_s:.0f} s: "
            "see the server's log"
        )

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
