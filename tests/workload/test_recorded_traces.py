"""Traces that Lengthwise records: a log of an engine, a round of a benchmark."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from lengthwise.measure.results import RequestRecord, ResultsWriter, RoundInfo, RunInfo
from lengthwise.workload.trace import load_trace
from tests.support.trace_files import plain, refused, write

HEADER = '{"schema": "lengthwise.requests/1"}\n'


def log_line(arrival_s: float, output_tokens: int) -> str:
    line = {"id": "x", "arrival_s": arrival_s, "queue_s": None, "expected_tokens": None}
    return json.dumps({**line, "prompt_tokens": 3, "output_tokens": output_tokens}) + "\n"


def test_a_log_is_sorted_by_arrival(tmp_path: Path) -> None:
    """Its lines are in the order in which requests ended, behind a header for every start."""
    lines = [HEADER, log_line(9.0, 5), log_line(7.5, 50), HEADER, log_line(11.0, 0)]
    (tmp_path / "requests.jsonl").write_text("".join(lines))
    trace = load_trace(tmp_path)
    assert trace.name == tmp_path.name
    assert trace.layout == "lengthwise log"
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.output_tokens.tolist() == [50, 5]
    assert trace.rejected == []
    assert trace.left_out == {"it ended before its first token": 1}
    assert load_trace(tmp_path / "requests.jsonl", limit=1).output_tokens.tolist() == [50]


def test_a_log_that_was_cut_off_is_read_up_to_there(tmp_path: Path) -> None:
    (tmp_path / "requests.jsonl").write_text(HEADER + log_line(1.0, 5) + log_line(2.0, 6)[:20])
    trace = load_trace(tmp_path)
    assert trace.output_tokens.tolist() == [5]
    assert [rejection.row for rejection in trace.rejected] == [3]


def test_a_log_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    newer = HEADER.replace("/1", "/2")
    (tmp_path / "requests.jsonl").write_text(newer + log_line(1.0, 5))
    assert "lengthwise.requests/2" in refused(tmp_path)
    columns = {**plain([0.0], [1], [1]), "schema": ["lengthwise.records/9"]}
    assert "lengthwise.records/9" in refused(write(tmp_path, ".jsonl", columns))


def bench_folder(folder: Path, policies: Sequence[str]) -> Path:
    """A benchmark's folder in which round r has answers of r + 1 and 10 (r + 1) tokens."""
    writer = ResultsWriter(folder, RunInfo("lengthwise bench x", "2026-01-02", "m", "d", 2))
    for number, policy in enumerate(policies):
        records = [
            RequestRecord(number, policy, "burst", 0, 2.0, sent_s=2.5, prompt_tokens=3),
            RequestRecord(number, policy, "burst", 1, 1.0, sent_s=1.0, prompt_tokens=4),
            RequestRecord(number, policy, "burst", 2, 1.0, sent_s=1.0, prompt_tokens=4),
        ]
        records[0].output_tokens, records[1].output_tokens = number + 1, 10 * (number + 1)
        writer.append(RoundInfo(number, policy, "burst", 0), records)
    return folder


@pytest.mark.parametrize(("policies", "number"), [(["srpt", "fcfs", "fcfs"], 1), (["srpt"], 0)])
def test_a_benchmark_is_read_as_its_first_round_under_fcfs(
    tmp_path: Path, policies: list[str], number: int
) -> None:
    trace = load_trace(bench_folder(tmp_path, policies))
    assert trace.layout == "lengthwise bench"
    assert trace.arrival_s.tolist() == [0.0, 1.5]
    assert trace.prompt_tokens.tolist() == [4, 3]
    assert trace.output_tokens.tolist() == [10 * (number + 1), number + 1]
    assert trace.left_out == {"the request failed": 1}


def test_folders_without_a_record_are_refused(tmp_path: Path) -> None:
    assert "no requests.jsonl" in refused(tmp_path)
    for path in bench_folder(tmp_path / "b", ["fcfs"]).glob("round-*"):
        path.unlink()
    assert "no finished round" in refused(tmp_path / "b")
