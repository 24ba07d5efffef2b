"""What the journal of an engine that died, filled its disk or was damaged still says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lengthwise.counters import Counters
from lengthwise.errors import InputError
from lengthwise.serve.journal_reader import Arrived, explain, in_words, read_lives
from lengthwise.telemetry.journal import SEGMENTS, Journal
from tests.support.command_line import Run

HEADER = '{"schema": "lengthwise.journal/1", "engine": 0, "pid": 7}\n'


def arrived(t: float, name: str, index: int) -> dict[str, Any]:
    facts = {"id": None, "priority": 0, "prompt_tokens": 3, "waiting": 0}
    return {"t": t, "event": "arrived", "request": name, "index": index, **facts}


def ran(t: float, name: str, index: int) -> dict[str, Any]:
    facts = {"rank": 2.0, "tier": 2, "expected": 9.0}
    return {"t": t, "event": "ran", "request": name, "index": index, **facts}


def write(folder: Path, *events: dict[str, Any]) -> None:
    """The life of an engine."""
    journal = Journal(folder, 0, Counters())
    for event in events:
        journal.put(**event)
    journal.close()


def names(folder: Path) -> list[list[str]]:
    """Requests that arrived, by life."""
    lives, _ = read_lives(folder)
    return [[e.request for e in life.events if isinstance(e, Arrived)] for life in lives]


def test_the_next_life_says_nothing_of_a_request_that_waited_in_the_last(tmp_path: Path) -> None:
    write(tmp_path, arrived(100.0, "cmpl-lost-0", 5), arrived(103.0, "b", 6))
    later = [arrived(86_500.0 + n, f"n{n}", n) for n in range(50)]
    write(tmp_path, *later, *(ran(86_600.0 + n, f"n{n}", n) for n in range(50)))
    told = explain(tmp_path, "lost")
    assert (told.waited_s, told.overtaken_by, told.runs_s) == (3.0, [], [])
    assert told.engine_over
    assert "started again since" in in_words(told)[-1]
    assert not explain(tmp_path, "n7").engine_over


def test_starts_erase_nothing(tmp_path: Path) -> None:
    write(tmp_path, arrived(1.0, "a", 0))
    for _ in range(3):
        write(tmp_path)
    write(tmp_path, arrived(1.0, "b", 0))
    assert names(tmp_path) == [["a"], ["b"]]


def test_a_life_goes_on_in_the_next_segment(tmp_path: Path) -> None:
    journal = Journal(tmp_path, 0, Counters(), most_bytes=1000)
    for number in range(20):
        journal._write([arrived(float(number), f"r{number}", number)])
    journal.close()
    assert all((tmp_path / name).read_text().startswith('{"schema"') for name in SEGMENTS)
    (life,) = names(tmp_path)
    assert life[-1] == "r19"
    assert 2 < len(life) < 20


def test_an_engine_that_was_killed_within_a_line_costs_that_line_alone(tmp_path: Path) -> None:
    write(tmp_path, arrived(1.0, "a", 0))
    with (tmp_path / SEGMENTS[1]).open("ab") as file:
        file.write(b'{"t": 2.0, "event": "arri')
    assert read_lives(tmp_path)[1] == {}  # it may still be written
    write(tmp_path, arrived(1.0, "b", 0))
    assert names(tmp_path) == [["a"], ["b"]]
    assert read_lives(tmp_path)[1] == {"damaged": 1}


DISK_FULL = """
import resource, sys
from pathlib import Path
from lengthwise.counters import Counters
from lengthwise.telemetry.journal import SEGMENTS, Journal

sys.path.insert(0, sys.argv[3])
from tests.serve.test_journal_events import arrived

folder, of_a_new_segment = Path(sys.argv[1]), sys.argv[2] == "new"
counters = Counters()
journal = Journal(folder, 0, counters, most_bytes=20_000)

def batch(name, count):
    lines = [arrived(0.0, f"{name}-{n}", n) for n in range(count)]
    try:
        return journal._write(lines)
    except OSError:
        return 0

assert batch("before", 100) == 100
size = (folder / SEGMENTS[1]).stat().st_size
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (40 if of_a_new_segment else size + 200, most))
for _ in range(3):
    assert batch("full", 100 if of_a_new_segment else 5) == 0
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
assert batch("after", 20) == 20
journal.close()
print(counters.record_lost)
"""


@pytest.mark.parametrize(("where", "lost"), [("new", 300), ("same", 15)])
def test_a_full_disk_costs_the_lines_that_it_refuses(tmp_path: Path, where: str, lost: int) -> None:
    """In the middle of a segment, and where one would have to begin."""
    finished = subprocess.run(
        [sys.executable, "-c", DISK_FULL, str(tmp_path), where, str(Path(__file__).parents[2])],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert finished.returncode == 0, finished.stderr
    assert int(finished.stdout) == lost
    _, left_out = read_lives(tmp_path)
    assert left_out == {}
    before, after = (
        [f"{name}-{n}" for n in range(k)] for name, k in (("before", 100), ("after", 20))
    )
    assert names(tmp_path) == [before + after]
    assert explain(tmp_path, "before-3").request == "before-3"


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path: Path) -> None:
    good = json.dumps(arrived(1.0, "a", 0)) + "\n"
    old, new = (tmp_path / name for name in SEGMENTS)
    old.write_text(HEADER + good)
    new.write_text(  # as an older Lengthwise left it on a full disk
        json.dumps(arrived(2.0, "b", 1))
        + "\n"
        + '{"schema": "lengthwise.journal/9", "engine": []}\n{"schema": "lengthwise.journal/9"}\n'
        + good
        + HEADER
        + json.dumps(ran(3.0, "a", 0))
        + "\n[1]\n\xff\n"
    )
    told = explain(tmp_path, "a")
    assert told.runs_s == [2.0]
    assert told.left_out == {
        "before the first header": 1,
        "damaged": 3,
        "of another version ('lengthwise.journal/9')": 2,
    }
    assert "cannot be used: 1 before the first header, 3 damaged, 2 of" in in_words(told)[-1]
    with pytest.raises(InputError, match=r"the oldest that is there is a; lines .* 3 damaged"):
        explain(tmp_path, "b")


@pytest.mark.parametrize(
    "content",
    [
        '{"schema":"lengthwise.journal/1","engine":"x"}\n{"event":"arrived","request":"a"}\n',
        '{"schema":"lengthwise.journal/1"}\n{"event":"arrived","request":"a","id":null}\n',
        HEADER + json.dumps({**arrived(1.0, "a", 0), "t": "1.0"}) + "\n",
        HEADER + json.dumps({**arrived(1.0, "a", 0), "t": float("nan")}) + "\n",
        "",
        "\0" * 4096 + "\n",
    ],
)
def test_a_journal_of_wrong_types_is_one_line(tmp_path: Path, content: str, run: Run) -> None:
    (tmp_path / SEGMENTS[1]).write_text(content)
    code, _, said = run("explain", str(tmp_path), "a")
    assert code == 2
    (line,) = said.splitlines()
    assert "no request 'a'" in line
    assert ("cannot be used" in line) == bool(content)


@pytest.mark.parametrize("event", ["ran", "queue", "paused", "preempted", "ended"])
def test_a_wrong_event_of_a_request_is_left_out(tmp_path: Path, event: str) -> None:
    wrong = {"t": 2.0, "event": event, "request": "a", "requests": {"a": [1]}, "index": None}
    lines = [arrived(1.0, "a", 0), wrong, ran(3.0, "a", 0)]
    (tmp_path / SEGMENTS[1]).write_text(HEADER + "".join(json.dumps(e) + "\n" for e in lines))
    told = explain(tmp_path, "a")
    assert (told.runs_s, told.left_out) == ([2.0], {"damaged": 1})
