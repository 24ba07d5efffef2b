"""Waiting for what a thread or another process does: as long as a busy machine may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE_S = 120.0


def wait_until(what: Callable[[], Any], within_s: float = PATIENCE_S) -> Any:
    """What `what` gives, once that counts as true; the test fails where it never does."""
    deadline = time.monotonic() + within_s
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
