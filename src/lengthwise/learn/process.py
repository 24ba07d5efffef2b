"""The learner as a process: lowest priority, one thread, gone when its server is.

Run as `python -m lengthwise.learn.process` by `supervisor`, which also sets the environment that
keeps numerical libraries to one thread.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import time
from pathlib import Path
from typing import IO, Final

from lengthwise.files import take_lock
from lengthwise.learn.learner import Learner

_POLL_S: Final = 1.0
_LOWEST: Final = 19  # niceness
_LOCK: Final = ".learner.lock"

_held: list[IO[bytes]] = []

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
    step_back()
    waited = _wait_for_others(given.log, given.parent)
    learner = Learner(
        given.log,
        given.settings,
        every=given.every,
        restarts=given.restarts,
        goes_on=waited,
    )
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


def _wait_for_others(log: Path, parent: int) -> bool:
    """Wait while the learner of another server works in the log, which reads what all servers
    write there. Whether there was one; the lock is held until this process ends."""
    waited = False
    while os.getppid() == parent:
        try:
            if (lock := take_lock(log / _LOCK)) is not None:
                _held.append(lock)
                return waited
        except OSError:  # no locks there, or nothing can be written: the learner says so
            return waited
        if not waited:
            logger.info("another server's learner works in %s: this one waits for its end", log)
        waited = True
        time.sleep(_POLL_S)
    return waited


def step_back() -> None:
    """Let every other process of the machine go first.

    At niceness 19 Linux still gives a process a small share of a core that others want, which an
    engine feels whose threads wait for one another. A process of the class SCHED_IDLE gets what
    is left over.
    """
    os.nice(_LOWEST)
    with contextlib.suppress(OSError, AttributeError):  # not Linux, or not allowed here
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


if __name__ == "__main__":
    main()
