"""What verbs print: progress on stderr, a live line or a log's plain lines, and JSON on stdout."""

from __future__ import annotations

import json
import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

_LOG_EVERY_S = 10.0  # in a log: how often a long stage says how far it is


class ConsoleProgress:
    """Shows what a run is doing; a context manager that clears the live line in the end."""

    def __init__(self) -> None:
        """Write to stderr, so that stdout stays free for results."""
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._live = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}", markup=False),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._live.add_task("", total=None, state="", visible=False)
        self._title = ""
        self._total: int | None = None
        self._logged = 0.0

    def __enter__(self) -> ConsoleProgress:
        """Start the live line where there is a terminal."""
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *raised: object) -> None:
        """Clear the live line."""
        self._live.stop()

    def stage(self, title: str, total: int | None = None) -> None:
        """Something new begins, with `total` steps where they are known."""
        self._title, self._total, self._logged = title, total, time.monotonic()
        if self._console.is_terminal:
            self._live.reset(self._task, description=title, total=total, state="", visible=True)
        else:
            self.note(title)

    def advance(self, done: int, remark: str = "") -> None:
        """`done` steps of the current stage are behind."""
        state = f"{done:,}" if self._total is None else f"{done:,}/{self._total:,}"
        state = f"{state} {remark}".rstrip()
        if self._console.is_terminal:
            self._live.update(self._task, completed=done, state=state)
        elif time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            self.note(f"  {self._title}: {state}")

    def note(self, line: str) -> None:
        """One line that stays on the screen."""
        self._console.print(line, markup=False)


def print_json(value: Any, *, pretty: bool = True) -> None:
    """JSON on stdout, over several lines or on one, with null for what is not a number."""
    text = json.dumps(without_nan(value), indent=2 if pretty else None, ensure_ascii=False)
    print(text, flush=True)


def without_nan(value: Any) -> Any:
    """JSON has no NaN: what is undefined is null there."""
    if isinstance(value, float) and math.isnan(value):
        return None
    if isinstance(value, dict):
        return {key: without_nan(each) for key, each in value.items()}
    return [without_nan(each) for each in value] if isinstance(value, list | tuple) else value
