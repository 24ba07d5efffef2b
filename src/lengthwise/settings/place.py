"""Where an engine writes: its record, its journal and its status, each under a name of its own.

Engines of one data-parallel server have numbers; those of two servers with one settings file have
the same. Whoever finds a name taken takes the next one: `record`, `record/engine-0-2`, …; that it
is taken, a lock says, which ends with the process that holds it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from lengthwise.files import take_lock
from lengthwise.settings.file import status_path

_MOST_SERVERS: Final = 64

logger = logging.getLogger("vllm.lengthwise")


class Place:
    """A name, taken until it is closed.

    Args:
        named: the name for the first server that wants it, the second, …, from 1 on.
        lock: the lock's file, by the name.

    Attributes:
        path: the name.
    """

    def __init__(self, named: Callable[[int], Path], lock: Callable[[Path], Path]) -> None:
        self.path = first = named(1)
        self._lock: IO[bytes] | None = None
        for server in range(1, _MOST_SERVERS + 1):
            try:
                self._lock = take_lock(lock(named(server)))
            except OSError:  # nothing can be written there: whoever tries says so
                return
            if self._lock is not None:
                self.path = named(server)
                break
        if self.path != first:
            logger.warning(
                "Lengthwise: another engine of the same number has %s, this one has %s",
                first,
                self.path,
            )

    def close(self) -> None:
        """Let others have it."""
        if self._lock is not None:
            self._lock.close()


def own_folder(folder: Path, engine: int) -> Place:
    """An engine's part of a folder that settings name."""

    def named(server: int) -> Path:
        if server > 1:
            return folder / f"engine-{engine}-{server}"
        return folder / f"engine-{engine}" if engine > 0 else folder

    return Place(named, lambda path: path / ".lock")


def own_status(settings: Path, engine: int) -> Place:
    """An engine's status file."""
    return Place(
        lambda server: status_path(settings, engine, server),
        lambda path: path.with_name(f".{path.stem}.lock"),
    )
