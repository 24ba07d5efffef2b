"""What may stand where a settings file should, and is none."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

STRANGE: dict[str, Callable[[Path], object]] = {
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "pipe": lambda path: os.mkfifo(path),
    "folder": lambda path: path.mkdir(),
    "socket": lambda path: socket.socket(socket.AF_UNIX).bind(str(path)),
    "link in a circle": lambda path: path.symlink_to(path),
    "large": lambda path: path.write_bytes(b" " * (2 << 20)),
    "nested": lambda path: path.write_text("[" * 100_000),
    "digits": lambda path: path.write_text('{"blend": ' + "9" * 100_000 + "}"),
    "bytes": lambda path: path.write_bytes(bytes(range(256))),
    "surrogate": lambda path: path.write_text('{"policy": "\\ud800"}'),
}
