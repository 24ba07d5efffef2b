"""Signals held off where stopping half-way would leave processes behind."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ignored(*signals: signal.Signals) -> Iterator[None]:
    """Ignore signals within the block; programs started in it ignore them from the beginning.

    Only the main thread may set signals: elsewhere the block runs as it is.
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
