"""A queue that the engine fills, and the thread that writes down what is in it."""

from __future__ import annotations

import logging
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from lengthwise.counters import Counters
from lengthwise.errors import one_line

logger = logging.getLogger("vllm.lengthwise")

_FLUSH_S: Final = 0.25
_RETRY_S: Final = 5.0  # after the disk refused
_PATIENCE_S: Final = 10.0  # with a disk that hangs, when closing

Item = TypeVar("Item")


class QueuedWriter(ABC, Generic[Item]):
    """What the thread cannot keep up with, or cannot write, is lost and counted; serving goes on.

    Args:
        what: is written, such as "journal".
        counters: what is lost is counted there.
        most: items that may wait to be written.
    """

    def __init__(self, what: str, counters: Counters, most: int) -> None:
        self._what = what
        self._counters = counters
        self._most = most
        # A deque, because appending and taking from the other end need no lock.
        self._queue: deque[Item] = deque()
        self._refused_until = 0.0
        self._complained = False  # since all was well
        self._in_trouble = False  # in what is being written
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"lengthwise-{what}", daemon=True)

    def close(self) -> None:
        """Write what is left and stop."""
        self._closed.set()
        self._thread.join(_PATIENCE_S)

    @abstractmethod
    def _encode(self, item: Item) -> bytes:
        """An item's line."""

    @abstractmethod
    def _write(self, items: list[Item]) -> int:
        """Write items that have waited, perhaps none; say how many were, and lose the others.

        Raises:
            OSError: the disk does not take them; it is left alone for a while.
        """

    def _end(self) -> None:
        """Done by the thread when all is written."""

    def _lose(self, count: int) -> None:
        self._counters.record_lost += count

    def _put(self, item: Item) -> None:
        """Takes about a microsecond and never waits."""
        if len(self._queue) >= self._most or self._closed.is_set():
            self._lose(1)
        else:
            self._queue.append(item)

    def _run(self) -> None:
        closed = False
        while not closed:
            closed = self._closed.wait(_FLUSH_S)
            items = [self._queue.popleft() for _ in range(len(self._queue))]
            if time.monotonic() < self._refused_until:
                self._lose(len(items))
                continue
            self._in_trouble = False
            try:
                written = self._write(items)
            except OSError as error:
                self._refused_until = time.monotonic() + _RETRY_S
                self._complain(error)
            else:
                if written and self._complained and not self._in_trouble:
                    self._complained = False
                    logger.info("Lengthwise: the %s is written again", self._what)
        self._end()

    def _encoded(self, items: Iterable[Item]) -> list[bytes]:
        """The lines of items, without those that cannot be encoded: they are lost."""
        lines = []
        for item in items:
            try:
                lines.append(self._encode(item))
            except Exception as error:  # one line must not end the record of all others
                self._lose(1)
                self._complain(error)
        return lines

    def _complain(self, error: Exception) -> None:
        """Say once, until all is well again, why something is lost."""
        self._in_trouble = True
        if not self._complained:
            self._complained = True
            logger.error("Lengthwise: cannot write the %s: %s", self._what, one_line(error))
