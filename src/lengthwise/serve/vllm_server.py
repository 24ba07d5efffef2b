"""One vLLM server as a child process: started, watched, and stopped together with its engine.

Why it ended is one line, out of all that it printed. An engine that dies prints its cause once, and
then everything that waited for it complains: other processes, the API server, each open request. So
what an engine or a worker says of its own end is kept when it passes, and its first exception is
the cause. Without that, the last line decides that does not point elsewhere.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import os
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Final

from lengthwise.errors import InputError, LengthwiseError
from lengthwise.measure.server_metrics import parse_metrics
from lengthwise.processes import Stoppable, ignored
from lengthwise.serve.command import ServerCommand
from lengthwise.serve.places import SIZE

_STOP_PATIENCE_S = 20.0
_STEP_BACK = 5  # niceness
_LINES_LOST = b"lengthwise: lines are missing above, which could not be written\n"
_DIRECT = urllib.request.build_opener(
    # Whatever proxy the environment names, it does not lead to this machine.
    urllib.request.ProxyHandler({}),
    # The server is a child of ours, and its certificate is for the name that others call it by.
    urllib.request.HTTPSHandler(context=ssl._create_unverified_context()),
)

_TAIL_LINES: Final = 400  # enough to reach past a traceback or two, and bounded for a long service

# "(EngineCore pid=71) ERROR 11-23 02:10:11 [core.py:9] ValueError: text": all but the last is noise
_COLOUR: Final = re.compile(r"\x1b\[[\d;]*m")
_LOG_PREFIX: Final = re.compile(
    r"^(?:\([^)]*pid=\d+\)\s*)?(?:(?:ERROR|CRITICAL) [\d-]+ [\d:.]+ \[[^\]]*\]\s?)?"
)
_EXCEPTION: Final = re.compile(
    r"^(?:[A-Za-z_]\w*\.)*(?P<kind>[A-Za-z_]\w*(?:Error|Exception|Interrupt))"
    r"(?:: (?P<message>.*))?$"
)
_USAGE_ERROR: Final = re.compile(r"^\S+: error: (?P<message>.*)$")
_VALIDATION: Final = re.compile(r"\b\d+ validation errors? for \w+$")
_OWN: Final = ("InputError", "LengthwiseError")

#: What vLLM says before the traceback that tells why one of its processes ends.
_FATAL: Final = re.compile(
    r"(?:EngineCore (?:failed to start|encountered a fatal error)"
    r"|WorkerProc (?:failed to start|hit an exception))\."
)
#: What it says where a process was killed, which prints nothing itself.
_DIED: Final = re.compile(
    r"\b(?:Engine core process|Worker proc|Process) .*died (?:unexpectedly|with exit code).*"
)
#: Its last words, which say nothing.
_POINTS_ELSEWHERE: Final = re.compile(
    r"Engine core initialization failed|EngineDeadError|[Ss]ee (?:root cause|stack trace)"
    r"|stack trace above"
)
#: What a library counts when a process ends before it has tidied up.
_LEAKS: Final = re.compile(
    r"^nanobind: |^- leaked |^- \.\.\. skipped|nanobind\.readthedocs\.io|leaked .* objects?"
)
#: What each open request says once its engine is gone.
_ENGINE_IS_GONE: Final = re.compile(r"\bEngineDeadError: ")
_WITHOUT_A_WORD: Final = (
    "an engine's process died without a word, as one that is killed does (for want of memory?)"
)


class LastWords:
    """Takes a server's output line by line, in bounded memory, and tells why it ended."""

    def __init__(self) -> None:
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)
        self._fatal: list[str] = []  # from the first line that announces an end
        self._died: str | None = None
        self._engine_is_gone = False

    def add(self, line: str) -> None:
        """Take in the next line."""
        bare = _LOG_PREFIX.sub("", _COLOUR.sub("", line)).strip()
        if not _LEAKS.search(bare):
            self._tail.append(bare)
        if (self._fatal or _FATAL.search(bare)) and len(self._fatal) < _TAIL_LINES:
            self._fatal.append(bare)
        if self._died is None and (died := _DIED.search(bare)):
            self._died = died[0]
        self._engine_is_gone |= _ENGINE_IS_GONE.search(bare) is not None

    def reason(self) -> str | None:
        """The cause in one line; None where nothing was printed."""
        return (
            _first_exception(self._fatal)
            or self._died
            or (_WITHOUT_A_WORD if self._engine_is_gone else _last_exception(list(self._tail)))
        )

    @property
    def is_refusal(self) -> bool:
        """Whether something that was given is wrong, rather than that a run failed."""
        reason = self.reason()
        return any(
            line.endswith(f"InputError: {reason}") for line in (*self._fatal, *self._tail) if reason
        )


def _first_exception(lines: Sequence[str]) -> str | None:
    """The first exception, of which all later ones are consequences; ours say more than others."""
    said = [text for place in range(len(lines)) if (text := _exception(lines, place))]
    own = [message for line in lines if (message := _own_message(line))]
    return next(iter((*own, *said)), None)


def _last_exception(lines: Sequence[str]) -> str | None:
    """The last exception or usage error; else the last line that says anything."""
    for place in reversed(range(len(lines))):
        if usage := _USAGE_ERROR.match(lines[place]):
            return usage["message"]
        if text := _exception(lines, place):
            return text
    return next((line for line in reversed(lines) if line), None)


def _exception(lines: Sequence[str], place: int) -> str | None:
    """What the exception in a line says; None where there is none that says anything."""
    line = lines[place]
    if _VALIDATION.search(line):
        # pydantic names the model class first; what is wrong stands below it.
        details = [text for text in lines[place + 1 :] if text]
        return details[0].partition(" [type=")[0] if details else line
    if _EXCEPTION.match(line) is None or _POINTS_ELSEWHERE.search(line):
        return None
    return _own_message(line) or line


def _own_message(line: str) -> str | None:
    """The message of an error of our own, which says it all; for others the kind is part of it."""
    exception = _EXCEPTION.match(line)
    if exception is None or exception["kind"] not in _OWN:
        return None
    return exception["message"]


class Server(Stoppable):
    """A running (or starting) server; a context manager that always stops it.

    The child leads a process group of its own, so Ctrl-C in the terminal reaches only this
    process, which then stops the group: no engine core is left behind.
    """

    def __init__(self, command: ServerCommand, log: Path | None) -> None:
        """Start the server's process; `wait_ready` then waits until it answers.

        Args:
            command: what to start.
            log: the file that takes what the server prints; None passes it on to stderr.

        Raises:
            InputError: the log cannot be written.
        """
        self.command = command
        self.log = log
        self._last_words = LastWords()
        self._told_to_end = False
        self._sink = _sink(log)
        grace_s = command.shutdown_timeout_s + _STOP_PATIENCE_S  # should this process be killed
        self._process = subprocess.Popen(
            [
                sys.executable,
                *("-m", "lengthwise.serve.child", str(os.getpid()), str(grace_s)),
                *([f"{SIZE}{command.sizes_worker}"] if command.sizes_worker else []),
                *command.arguments,
            ],
            env=command.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._pass_output_on, daemon=True)
        self._reader.start()
        atexit.register(self.stop)

    def step_back(self) -> None:
        """Let other processes of this machine go first.

        An engine takes every core that it gets. A client that shares the machine with it must still
        send requests on time. To be called at once: the server's later processes inherit it.
        """
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, self._process.pid, _STEP_BACK)

    @property
    def url(self) -> str:
        """Where clients reach the server, without a trailing slash."""
        return self.command.url

    def wait_ready(
        self,
        timeout_s: float = math.inf,
        tick: Callable[[float], None] = lambda waited_s: None,
    ) -> None:
        """Wait until the server answers.

        Args:
            timeout_s: give up after so many seconds. A large model may take an hour to be fetched
                and loaded, so by default nobody gives up on a server that runs.
            tick: called about four times a second with the seconds waited.

        Raises:
            LengthwiseError: the server ended, with its own reason in one line, or took too long.
        """
        started = time.monotonic()
        while not self._answers():
            self.check()
            waited = time.monotonic() - started
            if waited > timeout_s:
                raise LengthwiseError(
                    f"the server did not answer within {timeout_s:.0f} s{self._see_log()}"
                )
            tick(waited)
            time.sleep(0.25)

    def check(self) -> None:
        """Raise LengthwiseError if the server has ended."""
        code = self._process.poll()
        if code is None:
            return
        self._reader.join(timeout=2.0)
        if code < 0:
            reason = f"killed by signal {-code} (out of memory is a common cause of 9)"
        else:
            reason = self._last_words.reason() or f"exit status {code}"
        # What the engine refused is as wrong as what is refused before it starts.
        kind = InputError if self._last_words.is_refusal else LengthwiseError
        raise kind(f"the vLLM server ended: {reason}{self._see_log()}")

    def wait(self) -> int:
        """Wait until the server ends by itself, and return its exit status."""
        return self._process.wait()

    def end(self) -> None:
        """Tell the server to end, and wait while it finishes what is open.

        Only its first process is told, which sees to the others. For `--shutdown-timeout` seconds
        vLLM takes nothing new and finishes what it has; without that flag it cuts off what is open.

        Raises:
            LengthwiseError: requests were cut off.
        """
        patience_s = self.command.shutdown_timeout_s
        open_requests = self._open_requests() if patience_s == 0.0 else None
        started = time.monotonic()
        self._tell_to_end()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(patience_s + _STOP_PATIENCE_S)
        took_s = time.monotonic() - started
        self.stop()
        if patience_s > 0.0 and took_s >= patience_s:
            raise LengthwiseError(
                f"stopped: what was not finished within {patience_s:g} s was cut off; "
                "--shutdown-timeout gives more time"
            )
        if open_requests:
            raise LengthwiseError(
                f"stopped: {open_requests} open requests were cut off; --shutdown-timeout SECONDS "
                "gives them time to finish"
            )

    def stop(self) -> None:
        """Stop the server and every process of its group. May be called twice."""
        atexit.unregister(self.stop)
        # A second Ctrl-C must not leave a half-stopped engine behind.
        with ignored(signal.SIGINT, signal.SIGTERM):
            # One that was told before has had its time.
            if self._process.poll() is None and not self._told_to_end:
                self._tell_to_end()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_PATIENCE_S)
            self._signal_group(signal.SIGKILL)
            self._process.wait()
            self._reader.join(timeout=2.0)

    def _tell_to_end(self) -> None:
        self._told_to_end = True
        self._process.terminate()

    def _open_requests(self) -> int:
        """Requests that run or wait; 0 where the server does not say."""
        try:
            page = self.call("/metrics", timeout_s=5.0).decode(errors="replace")
            sample = parse_metrics(page, self.url)
        except (OSError, InputError):
            return 0
        return int(sample.running + sample.waiting)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _answers(self) -> bool:
        try:
            self.call("/health", timeout_s=5.0)
        except OSError:
            return False
        return True

    def call(self, path: str, *, method: str = "GET", timeout_s: float = 60.0) -> bytes:
        """Ask the server for one of its paths.

        Raises:
            OSError: it does not answer, or not with success.
        """
        return fetch(f"{self.url}{path}", method=method, timeout_s=timeout_s)

    def _pass_output_on(self) -> None:
        """Read what the server prints until it ends: a pipe that nobody reads would stop it.

        So whatever becomes of our own output, on a full disk or after its reader has gone, lines
        are read on.
        """
        output = self._process.stdout
        assert output is not None
        lost = False
        for line in output:
            self._last_words.add(line.decode(errors="replace"))
            try:
                # Who is killed may leave a line open, which is not to run on into another's.
                self._sink.write(line if line.endswith(b"\n") else line + b"\n")
                self._sink.flush()
                if lost:
                    self._sink.write(_LINES_LOST)
                lost = False
            except OSError:
                lost = True
        if self.log is not None:
            with contextlib.suppress(OSError):
                self._sink.close()

    def _see_log(self) -> str:
        return f" (its log: {self.log})" if self.log is not None else ""


def _sink(log: Path | None) -> IO[bytes]:
    """What takes the server's lines: a file; stderr, where none is named, if there is one."""
    if log is None:
        return sys.stderr.buffer if sys.stderr is not None else open(os.devnull, "wb")
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        return log.open("wb")
    except OSError as error:
        raise InputError(f"cannot write the server's log {log}: {error.strerror}") from None


def fetch(url: str, *, method: str = "GET", timeout_s: float = 60.0) -> bytes:
    """Ask a server on this machine, whatever its certificate says.

    Raises:
        OSError: it does not answer, or not with success.
    """
    request = urllib.request.Request(url, method=method)
    with _DIRECT.open(request, timeout=timeout_s) as response:
        data: bytes = response.read()
        return data
