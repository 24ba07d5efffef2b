"""Processes that we start: stopped whatever happens, and started again no more often than helps."""

from __future__ import annotations

import signal
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self


class Stoppable(ABC):
    """Something that was started; a context manager that stops it, however the block ends."""

    def __enter__(self) -> Self:
        """What was started, itself."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Stop it."""
        self.stop()

    @abstractmethod
    def stop(self) -> None:
        """Stop it. May be called twice."""


class BackOff:
    """How long to wait before a process that ended is started again: each time twice as long."""

    def __init__(self, first_s: float, longest_s: float) -> None:
        """From the first to the longest pause, in seconds."""
        self._first_s, self._longest_s = first_s, longest_s
        self._next_s = first_s

    def next_s(self) -> float:
        """The pause before the next start, s."""
        pause_s = self._next_s
        self._next_s = min(2 * pause_s, self._longest_s)
        return pause_s

    def reset(self) -> None:
        """It did well: begin with the first pause again."""
        self._next_s = self._first_s


@contextmanager
def ignored(*signals: signal.Signals) -> Iterator[None]:
    """Ignore signals within the block, where stopping half-way would leave processes behind.

    Programs started in it ignore them from the beginning. Only the main thread may set signals:
    elsewhere the block runs as it is.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {each: signal.signal(each, signal.SIG_IGN) for each in signals}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
