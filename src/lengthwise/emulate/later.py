"""The result of a step that is not over yet."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from lengthwise.emulate.virtual_clock import Clock


class Later(Future):  # type: ignore[type-arg]
    """A result that is there once the clock shows the end of its step."""

    def __init__(self, output: Any, clock: Clock, end_s: float) -> None:
        super().__init__()
        self._clock = clock
        self._end_s = end_s
        self.set_result(output)

    def result(self, timeout: float | None = None) -> Any:
        """Let the step come to its end."""
        self._clock.wait_until(self._end_s)
        return super().result(timeout)
