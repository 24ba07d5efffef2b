"""The engine's record: whole lines behind a header, whatever happens to its files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from lengthwise.counters import Counters
from lengthwise.telemetry.journal import Recorder, _Line


def record(folder: Path, *steps: int) -> None:
    recorder = Recorder(folder, {}, Counters())
    for t in steps:
        recorder.step(t=t)
    recorder.close()


def lines(folder: Path) -> list[Any]:
    """The header as its schema, a step as its time, and what is neither as it is."""
    found: list[Any] = []
    for line in (folder / "steps.jsonl").read_text().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            found.append(line)
        else:
            found.append(values.get("schema", values.get("t")))
    return found


def test_an_engine_that_was_killed_within_a_line_costs_that_line_alone(tmp_path: Path) -> None:
    record(tmp_path, 1)
    with (tmp_path / "steps.jsonl").open("ab") as file:
        file.write(b'{"t": 2')
    record(tmp_path, 3)
    assert lines(tmp_path) == ["lengthwise.steps/1", 1, '{"t": 2', "lengthwise.steps/1", 3]


def test_a_file_that_was_taken_away_has_a_header_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, {}, Counters())
    recorder.close()  # its thread; the test writes itself
    for t in (1, 2):
        recorder._write([_Line("steps.jsonl", {"t": t})])
        assert lines(tmp_path) == ["lengthwise.steps/1", t]
        (tmp_path / "steps.jsonl").unlink()


DISK_FULL = """
import resource, sys
from pathlib import Path
from lengthwise.counters import Counters
from lengthwise.telemetry.journal import Recorder, _Line

folder = Path(sys.argv[1])
counters = Counters()
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (20, most))
recorder = Recorder(folder, {}, counters)
recorder.close()  # its thread; the test writes itself

def write(*steps):
    try:
        return recorder._write([_Line("steps.jsonl", {"t": t}) for t in steps])
    except OSError:
        return 0

assert write(0) == 0  # not even the header
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert write(1) == 1
size = (folder / "steps.jsonl").stat().st_size
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 5, most))
assert write(2, 3) == 0
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert write(4) == 1
print(counters.record_lost)
"""


def test_a_full_disk_costs_the_lines_that_it_refuses(tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == 3
    assert lines(tmp_path) == ["lengthwise.steps/1", 1, 4]
