"""The kill switch: a file whose presence puts the engine back into vLLM's own order."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from lengthwise.settings.polling import Polling

logger = logging.getLogger("vllm.lengthwise")

_POLL_S: Final = 0.1


class OffSwitch:
    """Looks for a file, in a thread that does nothing else: no predictor that loads delays it.

    Args:
        path: the file; what is in it does not matter.
        switch: called with whether it is there, at once and whenever that changes; must not wait.
    """

    def __init__(self, path: Path, switch: Callable[[bool], None]) -> None:
        self._path = path
        self._switch = switch
        self._off = False
        self._look()  # before the first step
        self._polling = Polling("off switch", _POLL_S, self._look)

    def close(self) -> None:
        """Look no more; the order stays as it is."""
        self._polling.close()

    def _look(self) -> None:
        off = os.path.lexists(self._path)
        if off == self._off:
            return
        self._off = off
        self._switch(off)
        if off:
            logger.warning("Lengthwise: %s is there: the order is that of stock vLLM", self._path)
        else:
            logger.warning("Lengthwise: %s is gone: the settings decide again", self._path)
