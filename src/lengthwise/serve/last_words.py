"""Why a server ended: one line, out of all that it printed.

An engine that dies prints its cause once, and then everything that waited for it complains: other
processes, the API server, each open request. So what an engine or a worker says of its own end is
kept when it passes, and its first exception is the cause. Without that, the last line decides that
does not point elsewhere.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from typing import Final

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
