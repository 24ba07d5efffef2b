"""The client in a process of its own: what the command line does never delays a time stamp."""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import resource
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection

from lengthwise.compare.client import Replay, ReplayJob, replay
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.processes import Stoppable, ignored

_DESCRIPTORS_BESIDES = 100  # files and sockets that are open besides one per request


class ClientProcess(Stoppable):
    """A process that replays one round after another; a context manager that ends it."""

    def __init__(self) -> None:
        """Start the process."""
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs,), daemon=True)
        # Ctrl-C reaches every process of the terminal; this process is the one that heeds it.
        with ignored(signal.SIGINT):
            self._process.start()
        theirs.close()

    def stop(self) -> None:
        """End the process, also in the middle of a round. May be called twice."""
        self._process.terminate()
        self._process.join()
        self._connection.close()

    def replay(
        self,
        job: ReplayJob,
        progress: Callable[[int, int], None],
        check: Callable[[], None],
    ) -> Replay:
        """Run one round.

        Args:
            job: what to send where and when.
            progress: called with the numbers of answered and failed requests.
            check: called at least twice a second; raises to give the round up.

        Raises:
            InputError: the system allows too few open connections for the round.
            LengthwiseError: the client's process ended.
        """
        at_once = job.clients if job.scheduled_s is None else len(job.requests)
        _require_open_files((at_once or 1) + _DESCRIPTORS_BESIDES)
        self._connection.send(job)
        try:
            while True:
                check()
                if not self._connection.poll(0.5):
                    continue
                message = self._connection.recv()
                if isinstance(message, Replay):
                    return message
                progress(*message)
        except (EOFError, ConnectionError):
            raise LengthwiseError("the client's process ended in the middle of a round") from None


def _require_open_files(needed: int) -> None:
    """Refuse a round that needs more open files than the client may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise InputError(
            f"a round needs {needed:,} open files, the system allows {hard:,}: "
            "ask for fewer --requests or raise the limit (ulimit -Hn)"
        )


def _serve(connection: Connection[object, object]) -> None:
    """The process: rounds come in, progress and results go out, until the pipe is closed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    # Where the other end is gone, so is everybody who could want to know.
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            job = connection.recv()
            assert isinstance(job, ReplayJob)
            connection.send(
                asyncio.run(
                    replay(job, lambda answered, failed: connection.send((answered, failed)))
                )
            )
