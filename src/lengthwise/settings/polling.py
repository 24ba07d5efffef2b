"""Looking at something again and again, beside the engine."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from lengthwise.errors import one_line

logger = logging.getLogger("vllm.lengthwise")


class Polling:
    """Calls a function every so often, in a thread of its own, until it is closed.

    What it raises is said once, until it has worked again: the next look may find all in order.

    Args:
        what: says in the log, and in the thread's name, what is looked at.
        every_s: seconds between two looks; the first is at once.
        look: the function.
    """

    def __init__(self, what: str, every_s: float, look: Callable[[], None]) -> None:
        self._what = what
        self._every_s = every_s
        self._look = look
        self._failed = False
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lengthwise-{what}", daemon=True)
        self._thread.start()

    def close(self, patience_s: float | None = None) -> None:
        """Look no more; returns when the last look has ended, or after `patience_s` seconds."""
        self._closed.set()
        self._thread.join(patience_s)

    def _run(self) -> None:
        while True:
            try:
                self._look()
                self._failed = False
            except Exception as error:  # the next look may find all in order
                self._say(error)
            if self._closed.wait(self._every_s):
                return

    def _say(self, error: Exception) -> None:
        if not self._failed:
            self._failed = True
            said = f"{type(error).__name__}: {one_line(error)}"
            logger.warning("Lengthwise: looking at the %s failed: %s", self._what, said)
