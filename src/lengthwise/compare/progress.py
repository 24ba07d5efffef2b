"""How a long comparison tells what it is doing; the command line shows it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Takes the news of a run as it goes."""

    def stage(self, title: str, total: int | None = None) -> None:
        """Something new begins, with `total` steps where they are known."""

    def advance(self, done: int, remark: str = "") -> None:
        """`done` steps of the current stage are behind."""

    def note(self, line: str) -> None:
        """One line that stays on the screen."""


class Silent:
    """Shows nothing."""

    def stage(self, title: str, total: int | None = None) -> None:
        """Ignore it."""

    def advance(self, done: int, remark: str = "") -> None:
        """Ignore it."""

    def note(self, line: str) -> None:
        """Ignore it."""
