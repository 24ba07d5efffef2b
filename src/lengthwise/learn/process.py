"""The learner as a process: lowest priority, one thread, gone when its server is.

Run as `python -m lengthwise.learn.process` by `supervisor`, which also sets the environment that
keeps numerical libraries to one thread.
"""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path
from typing import Final

from lengthwise.learn.learner import Learner

_POLL_S: Final = 1.0
_LOWEST: Final = 19  # niceness: every other process of the machine goes first

logger = logging.getLogger("lengthwise.learn")


def main() -> None:
    """Learn until the parent ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--restarts", type=int, required=True)
    given = parser.parse_args()
    logging.basicConfig(format="lengthwise: learning: %(message)s", level=logging.INFO)
    os.nice(_LOWEST)
    learner = Learner(given.log, given.settings, every=given.every, restarts=given.restarts)
    complained = False
    while os.getppid() == given.parent:
        try:
            learner.step()
            complained = False
        except OSError as error:
            if not complained:
                logger.warning("cannot work in %s: %s", given.log, error)
            complained = True
        time.sleep(_POLL_S)


if __name__ == "__main__":
    main()
