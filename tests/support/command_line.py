"""The command line, run in this process: a second of start-up less than in one of its own."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

from lengthwise.cli.main import main


class Ended(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Ended]


@contextmanager
def command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    previous = signal.getsignal(signal.SIGTERM)

    def call(*arguments: str) -> Ended:
        monkeypatch.setattr(sys, "argv", ["lengthwise", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        captured = capsys.readouterr()
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, captured.out, captured.err)

    yield call
    signal.signal(signal.SIGTERM, previous)


class Command:
    """A command line whose end is known: it prints JSON, or refuses in one line.

    Args:
        run: runs command lines.
        verb: of ours, which is then left out; "" for any.
    """

    def __init__(self, run: Run, verb: str = "") -> None:
        self._run, self._verb = run, [verb] if verb else []

    def __call__(self, *arguments: object) -> Ended:
        return self._run(*self._verb, *map(str, arguments))

    def json(self, *arguments: object) -> dict[str, Any]:
        """What it printed with --json."""
        code, out, err = self(*arguments, "--json")
        assert code == 0, err
        parsed: dict[str, Any] = json.loads(out)
        return parsed

    def refusal(self, *arguments: object) -> str:
        """The one line with which it refused."""
        code, out, err = self(*arguments)
        assert code == 2
        assert out == ""
        assert "Traceback" not in err
        return err.strip().splitlines()[-1]
