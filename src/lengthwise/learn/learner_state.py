"""What learning has come to: learner.json, and the key `predictor` of a settings file.

learner.json says what was decided, for whoever looks and for a learner that goes on. The settings
file belongs to the user: it is read, one key is exchanged and it is written whole, unless it has
changed in between or the key no longer says what learning put there: then the user wins.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from lengthwise.files import read_bounded, replaced
from lengthwise.predict.load import NO_PREDICTOR

STATE_FILE: Final = "learner.json"
SCHEMA: Final = "lengthwise.learner/1"
MOST_BYTES: Final = 1 << 20  #: of a settings file, as the scheduler has it
_ATTEMPTS: Final = 5

Promise = tuple[float, float, float]  #: a tau when it was measured, and its 95 % interval


@dataclass
class State:
    """The fields of learner.json."""

    schema: str = SCHEMA  # with its version
    said: str = "nothing learnt yet"  # the last decision, in one line
    placed: str | None = None  # what the key `predictor` says, as far as the learner knows
    is_mine: bool = False  # whether the learner placed it
    promise: Promise | None = None  # its tau when it was accepted
    live_tau: float | None = None  # of the newest answers that it predicted
    before: str = NO_PREDICTOR  # the last good one: what is placed again if it fails
    promise_before: Promise | None = None  # of that one
    #: bytes of each segment of the log, at the last training
    trained_until: dict[str, int] = field(default_factory=dict)
    answers: int = 0  # remembered
    trained: int = 0  # predictors trained
    accepted: int = 0  # of them, found better and placed
    refused: int = 0  # trainings of which nothing was placed
    rolled_back: int = 0  # placed, and taken back
    restarts: int = 0  # times that the learner had to be started again
    damaged: int = 0  # lines of the log that were left out
    comparison: dict[str, float] = field(default_factory=dict)  # the last one's figures


def read_state(log: Path) -> State:
    """What a learner left in a log's folder; the beginning where there is none or it is damaged."""
    try:
        values: Any = json.loads((log / STATE_FILE).read_bytes())
    except (OSError, ValueError):
        return State()
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        return State()
    known = {each.name for each in fields(State)}
    return State(**{name: value for name, value in values.items() if name in known})


def write_state(log: Path, state: State) -> None:
    """Write the file, at once or not at all.

    Raises:
        OSError: it cannot be written.
    """
    with replaced(log / STATE_FILE) as part:
        part.write_text(json.dumps(asdict(state), indent=2) + "\n", encoding="utf-8")


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
