"""Nodes of Ray on a busy machine: Ray gives one up that takes half a minute to start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any


def started_twice(start: Callable[[], Any]) -> Any:
    """What `start` returns; where Ray gave up, of a second try."""
    with suppress(Exception):
        return start()
    return start()
