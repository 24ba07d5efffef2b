"""The learner as a process, and what keeps it alive beside a server.

A `LearnerProcess` starts it, again and again whatever happens to it, in an environment that keeps
numerical libraries to one thread.

The process, `python -m lengthwise.learn.process`, has the lowest priority and one thread, and is
gone when its server is.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from lengthwise.files import take_lock
from lengthwise.processes import BackOff, Stoppable

logger = logging.getLogger("lengthwise.learn")

# Each would start a thread a core.
_ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
)
_FIRST_PAUSE_S: Final = 1.0  # before a learner that ended is started again; doubles every time
_LONGEST_PAUSE_S: Final = 300.0
_SOUND_S: Final = 60.0  # one that lived so long starts from the first pause again
_STOP_PATIENCE_S: Final = 5.0

_POLL_S: Final = 1.0  # of the log, and of a lock that another learner holds
_LOWEST: Final = 19  # niceness
_LOCK: Final = ".learner.lock"

_held: list[IO[bytes]] = []  # locks, until this process ends


class LearnerProcess(Stoppable):
    """A learner's process, started again when it ends; a context manager that stops it.

    Args:
        log: the folder of the length log.
        settings: the settings file of the server.
        every: new answers that call for another training.
        say: takes lines for the user.

    Attributes:
        restarts: times that it had to be started again.
        pid: of the present process.
    """

    def __init__(self, log: Path, settings: Path, every: int, say: Callable[[str], None]) -> None:
        self.restarts = 0
        self._log, self._settings, self._every, self._say = log, settings, every, say
        self._closed = threading.Event()
        self._process = self._start()
        self._thread = threading.Thread(target=self._watch, name="lengthwise-learner", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the present process."""
        return self._process.pid

    def stop(self) -> None:
        """Stop the process, and do not start it again. May be called twice."""
        self._closed.set()
        self._process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_PATIENCE_S)
        self._process.kill()
        self._thread.join()

    def _start(self) -> subprocess.Popen[bytes]:
        options = {
            "--parent": os.getpid(),
            "--log": self._log,
            "--settings": self._settings,
            "--every": self._every,
            "--restarts": self.restarts,
        }
        words = [str(word) for option in options.items() for word in option]
        return subprocess.Popen(
            [sys.executable, "-m", "lengthwise.learn.process", *words],
            env={**os.environ, **_ONE_THREAD},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Ctrl-C in the terminal is for the server's command, which then stops this.
            start_new_session=True,
        )

    def _watch(self) -> None:
        pauses = BackOff(_FIRST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            started = time.monotonic()
            code = self._process.wait()
            if self._closed.is_set():
                return
            if time.monotonic() - started > _SOUND_S:
                pauses.reset()
            pause_s = pauses.next_s()
            how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
            with contextlib.suppress(OSError):  # a message that cannot be written
                self._say(f"the learner {how}; serving goes on, it starts again in {pause_s:.0f} s")
            if self._closed.wait(pause_s):
                return
            self.restarts += 1
            with contextlib.suppress(OSError):  # nothing to start it with now: after another pause
                self._process = self._start()


def main() -> None:
    """Learn until the parent ends."""
    # Imported here: what keeps this process alive is in a server, which has no use for a learner.
    from lengthwise.learn.learner import Learner, note_server

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--settings", type=Path, required=True)
    parser.add_argument("--every", type=int, required=True)
    parser.add_argument("--restarts", type=int, required=True)
    given = parser.parse_args()
    logging.basicConfig(format="lengthwise: learning: %(message)s", level=logging.INFO)
    step_back()
    with contextlib.suppress(OSError):  # nothing can be written: the learner says so
        note_server(given.log, given.settings)
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
