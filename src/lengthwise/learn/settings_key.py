"""The key `predictor` of a settings file, which learning changes, and nothing else in the file.

The file belongs to the user. It is read, one key is exchanged and it is written whole, unless it
has changed in between or the key no longer says what learning put there: then the user wins.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any, Final

from lengthwise.files import read_bounded
from lengthwise.predict.load import NO_PREDICTOR

_ATTEMPTS: Final = 5
MOST_BYTES: Final = 1 << 20  #: of a settings file, as the scheduler has it


def read_predictor(settings: Path) -> str:
    """What the file says; an artifact's folder is made absolute, as the scheduler does.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no settings file; the user may be in the middle of writing it.
    """
    return _predictor(settings, _values(read_bounded(settings, MOST_BYTES)))


def place_predictor(settings: Path, expected: str, wanted: str) -> bool:
    """Change the key, if it still says what is expected.

    Returns:
        Whether the file now says what is wanted. False: the user has changed it.

    Raises:
        OSError: it cannot be read or written.
        ValueError: it is no settings file.
    """
    for _ in range(_ATTEMPTS):
        data = read_bounded(settings, MOST_BYTES)
        values = _values(data)
        if _predictor(settings, values) != expected:
            return False
        values["predictor"] = wanted
        with tempfile.NamedTemporaryFile(dir=settings.parent, delete=False) as temporary:
            temporary.write((json.dumps(values, indent=2) + "\n").encode())
        try:
            shutil.copymode(settings, temporary.name)
            # As late as can be: what the user saved in the meantime is not overwritten.
            if read_bounded(settings, MOST_BYTES) == data:
                os.replace(temporary.name, settings)
                return True
        finally:
            Path(temporary.name).unlink(missing_ok=True)
    return False


def _values(data: bytes) -> dict[str, Any]:
    values = json.loads(data)
    if not isinstance(values, dict):
        raise ValueError("not a JSON object")
    return values


def _predictor(settings: Path, values: dict[str, Any]) -> str:
    predictor = str(values.get("predictor") or NO_PREDICTOR)
    folder = settings.parent / predictor
    return str(folder.resolve()) if folder.is_dir() else predictor
