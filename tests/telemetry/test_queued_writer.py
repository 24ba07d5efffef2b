"""What the log, the record and the journal have in common, on a journal."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lengthwise.counters import Counters
from lengthwise.telemetry.journal import SEGMENTS, Journal
from tests.support.waiting import wait_until


def _written(folder: Path) -> list[dict[str, object]]:
    (segment,) = folder.rglob(SEGMENTS[-1])
    lines = segment.read_text().splitlines()
    return [json.loads(line) for line in lines[1:]]


def _wait_until_written(folder: Path, count: int) -> None:
    wait_until(lambda: len(_written(folder)) >= count)


def test_a_line_that_cannot_be_encoded_costs_itself_and_is_said_once(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    counters = Counters()
    journal = Journal(tmp_path, 0, counters)
    for turn in range(3):  # each written at a time of its own
        journal.put(event="bad", what=object())
        journal.put(event="good", turn=turn)
        _wait_until_written(tmp_path, turn + 1)
    journal.close()
    assert [line["turn"] for line in _written(tmp_path)] == [0, 1, 2]
    assert counters.record_lost == 3
    assert [record.levelname for record in log.records] == ["ERROR"]
    assert "cannot write the journal" in log.text


def test_once_all_is_well_again_the_next_trouble_is_said(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    journal = Journal(tmp_path, 0, Counters())
    for turn, what in enumerate((object(), "fine", object())):
        journal.put(event="other", what=what)
        journal.put(event="good")
        _wait_until_written(tmp_path, turn + 1 + (turn >= 1))
    journal.close()
    assert [record.levelname for record in log.records] == ["ERROR", "ERROR"]


def test_a_folder_that_was_removed_is_made_again(tmp_path: Path) -> None:
    """As of the journal, so of the record, which appends in the same way."""
    folder, counters = tmp_path / "journal", Counters()
    journal = Journal(folder, 0, counters)
    for turn in range(2):
        journal.put(event="good", turn=turn)
        wait_until(lambda: [*folder.rglob(SEGMENTS[-1])] and len(_written(folder)) == 1)
        if turn == 0:
            shutil.rmtree(folder)
    journal.close()
    assert [line["turn"] for line in _written(folder)] == [1]
    assert counters.record_lost == 0
