"""Where the engines of a server keep their numbers while it runs."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Final

from lengthwise.files import take_lock

_PREFIX: Final = "lengthwise-engines-"
_LOCK: Final = ".lock"


class EnginesFolder(tempfile.TemporaryDirectory[str]):
    """A temporary folder, held by a lock that ends with this process however it ends.

    A server that is killed leaves its folder behind. The next one takes away what nobody holds.

    Raises:
        OSError: there is no place for temporary files.
    """

    def __init__(self) -> None:
        for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with suppress(OSError):
                _remove_if_left(path)
        super().__init__(prefix=_PREFIX, ignore_cleanup_errors=True)
        self._lock = None
        with suppress(OSError):  # a file system without locks: then what is left stays
            self._lock = take_lock(Path(self.name) / _LOCK)

    def cleanup(self) -> None:
        """Take the folder away, and then let go of it."""
        super().cleanup()
        if self._lock is not None:
            self._lock.close()


def _remove_if_left(path: Path) -> None:
    # Without its lock a folder is another user's, or has only just been made.
    if path.lstat().st_uid != os.getuid() or not (path / _LOCK).is_file():
        return
    lock = take_lock(path / _LOCK)
    if lock is not None:
        with lock:
            shutil.rmtree(path)
