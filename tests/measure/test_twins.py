"""Live results beside their exact twins: read, told apart, and shown."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from lengthwise.measure import ResultsWriter, read_results, write_report
from lengthwise.measure.results import LIVE, VIRTUAL
from lengthwise.measure.twins import LIVE_FOLDER, TWIN_FOLDER, read_twins, twins_table
from tests.support.measure_rounds import RUN, append_round

EXACT = {"fcfs": [1.0, 2.0, 3.0], "srpt": [1.0, 1.0, 2.0]}


def write_twins(folder: Path, slower: float = 1.1) -> None:
    """A run with twins, the live side `slower` times as slow."""
    run = replace(RUN, engine=VIRTUAL)
    writers = {
        VIRTUAL: ResultsWriter(folder / TWIN_FOLDER, run),
        LIVE: ResultsWriter(folder / LIVE_FOLDER, RUN),
    }
    main = ResultsWriter(folder, run)
    for number, (policy, latencies) in enumerate(EXACT.items()):
        append_round(main, number, policy, latencies, load="burst")
        append_round(writers[VIRTUAL], number, policy, latencies, load="burst=3")
        late = [slower * latency for latency in latencies]
        append_round(writers[LIVE], number, policy, late, load="burst=3")


def test_a_difference_is_live_over_virtual(tmp_path: Path) -> None:
    write_twins(tmp_path)
    twins = read_twins(tmp_path, read_results(tmp_path))
    assert [twin.exact.policy for twin in twins] == ["fcfs", "srpt"]
    for twin in twins:
        assert twin.difference("mean_e2el_ms") == pytest.approx(0.1)
        assert twin.difference("preemptions") is None  # of nothing, nothing can be said


@pytest.mark.parametrize("what", ["earlier run's", "half", "none"])
def test_what_is_no_twin_of_this_run_is_not_shown(what: str, tmp_path: Path) -> None:
    write_twins(tmp_path)
    if what == "earlier run's":
        later = replace(RUN, engine=VIRTUAL, started="2026-11-20T11:00:00+00:00")
        append_round(ResultsWriter(tmp_path, later), 0, "fcfs", [1.0])
    elif what == "half":  # the server did not come up, and an earlier one's rounds are gone
        ResultsWriter(tmp_path / LIVE_FOLDER, RUN)
    else:
        (tmp_path / LIVE_FOLDER).rename(tmp_path / "elsewhere")
    assert read_twins(tmp_path, read_results(tmp_path)) == []


def test_every_row_says_which_side_it_is(tmp_path: Path) -> None:
    write_twins(tmp_path)
    results = read_results(tmp_path)
    twins = read_twins(tmp_path, results)
    write_report(tmp_path, results, twins=twins)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["policy"], row["load"], row["engine"]) for row in rows] == [
        ("fcfs", "burst", "virtual"),
        ("srpt", "burst", "virtual"),
        ("fcfs", "burst=3", "live"),
        ("fcfs", "burst=3", "virtual"),
        ("srpt", "burst=3", "live"),
        ("srpt", "burst=3", "virtual"),
    ]
    assert rows[2]["difference_mean_e2el"] == pytest.approx(0.1)
    console = Console(file=StringIO(), width=80, color_system=None)
    console.print(twins_table(twins))
    screen = console.file.getvalue()  # type: ignore[attr-defined]
    page = (tmp_path / "report.html").read_text()
    for text in (screen, page):
        assert "3 at once, live beside virtual time" in text
        assert text.count("difference") >= 2
        assert "+10.0 %" in text
    assert max(map(len, screen.splitlines())) <= 80
