"""What only watches, or may be a user's own code, is kept from ending the engine.

A part that raises is counted, said once in the log, and asked no more until the settings change.
Requests are served on without it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lengthwise.counters import Counters
from lengthwise.errors import one_line

logger = logging.getLogger("vllm.lengthwise")


class Containment:
    """Calls parts by name, and keeps those out that have raised.

    Attributes:
        off: why parts are switched off, by their names.
    """

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.off: dict[str, str] = {}

    def call(self, part: str, function: Callable[..., object], *args: Any, **values: Any) -> None:
        """Call a part's function unless the part is switched off. Never raises."""
        if part in self.off:
            return
        try:
            function(*args, **values)
        except Exception as error:  # whatever it is, requests are served
            self.switch_off(part, error)

    def switch_off(self, part: str, error: Exception) -> None:
        """Note that a part has raised."""
        self.off[part] = f"{type(error).__name__}: {one_line(error)}"
        self._counters.switched_off += 1
        logger.error(
            "Lengthwise: the %s is switched off until the settings change: %s",
            part,
            self.off[part],
            exc_info=error,
        )

    def restart(self) -> None:
        """The settings have changed: every part gets another chance."""
        self.off = {}
