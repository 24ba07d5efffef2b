"""One file for each engine with what it counts, for whoever shows metrics.

Where the environment variable `LENGTHWISE_ENGINES` names a folder, every engine keeps a file there,
replaced as a whole once a second. The variable comes from `lengthwise serve`; without it nothing is
written.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lengthwise.files import read_bounded, replace_file
from lengthwise.settings.polling import Polling

ENGINES: Final = "LENGTHWISE_ENGINES"  #: the environment variable that names the folder
SCHEMA: Final = "lengthwise.engine/1"

_EVERY_S: Final = 1.0
_MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class EngineState:
    """What an engine says of itself.

    Attributes:
        engine: its number in a data-parallel server.
        model_name: the name that the model is served by.
        policy: the policy in force.
        counters: totals since its start, by name.
        gauges: present values, by name.
        queue_times: see `QueueTimes.snapshot`.
    """

    engine: int
    model_name: str
    policy: str
    counters: Mapping[str, int]
    gauges: Mapping[str, float]
    queue_times: list[dict[str, Any]]


class EngineFile:
    """Keeps an engine's file true until it is closed; the file is then removed.

    Args:
        folder: where it is.
        state: what it says, called in a thread of its own.
        engine: the engine's number.
    """

    def __init__(self, folder: Path, state: Callable[[], EngineState], engine: int) -> None:
        self.path = folder / f"engine-{engine}-{os.getpid()}.json"
        self._state = state
        self._polling = Polling("engine's numbers", _EVERY_S, self._write)

    def close(self) -> None:
        """Stop, and take the file away."""
        self._polling.close()
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        said = {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "time": round(time.time(), 3),
            **vars(self._state()),
        }
        replace_file(self.path, json.dumps(said).encode())


def engines_folder() -> Path | None:
    """The folder that the environment names; None where it names none."""
    named = os.environ.get(ENGINES)
    return Path(named) if named else None


def read_engines(folder: Path) -> tuple[list[EngineState], dict[Path, str]]:
    """What the living engines of a folder say.

    Returns:
        Their states by number, and the files that were left out with the reason: `dead` (its
        process has ended), `torn` (it cannot be read), `version` (of another version) or `twice`
        (another engine that began later has its number).
    """
    newest: dict[int, tuple[int, Path, EngineState]] = {}
    left_out: dict[Path, str] = {}
    for path in sorted(folder.glob("engine-*.json")):
        try:
            said = json.loads(read_bounded(path, _MOST_BYTES))
            if said["schema"] != SCHEMA:
                left_out[path] = "version"
                continue
            pid, began = int(said["pid"]), said["started"]
            fields = {name: said[name] for name in EngineState.__dataclass_fields__}
            state = EngineState(**{**fields, "engine": int(said["engine"])})
        except FileNotFoundError:  # closed since the folder was listed
            continue
        except (OSError, ValueError, KeyError, TypeError):
            left_out[path] = "torn"
            continue
        if not alive(pid, began):
            left_out[path] = "dead"
            continue
        number, age = state.engine, int(began or 0)
        if number in newest:
            older = path if age < newest[number][0] else newest[number][1]
            left_out[older] = "twice"
            if older == path:
                continue
        newest[number] = age, path, state
    return [newest[number][2] for number in sorted(newest)], left_out


def started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where the system does not say."""
    try:
        # Field 22; the second one is a name in parentheses that may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def alive(pid: int, began: int | None) -> bool:
    """Whether the process that began then still runs, and not another one by its number."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    return began is None or started(pid) in (began, None)
