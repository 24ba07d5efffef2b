"""Whether a process is still there."""

from __future__ import annotations

import os


def is_gone(pid: int) -> bool:
    """Whether a process has ended and was waited for: a zombie could still be signalled."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def has_ended(pid: int) -> bool:
    """Whether a process that is not ours has ended, even where nobody waits for orphans."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return is_gone(pid)
