"""The status file beside a settings file, in which an engine says what it has taken up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lengthwise.settings import status_path


def status_of(settings: Path, engine: int = 0) -> dict[str, Any]:
    """What an engine that watches these settings says of itself."""
    status: dict[str, Any] = json.loads(status_path(settings, engine).read_text())
    return status
