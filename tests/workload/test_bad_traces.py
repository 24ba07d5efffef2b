"""Traces with rows and files that are none: left out with a reason, or refused in one line."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthwise.errors import InputError
from lengthwise.workload.layouts import LAYOUTS
from lengthwise.workload.trace import load_trace
from tests.support.trace_files import SUFFIXES, plain, refused, write

MALFORMED = [
    ("output_tokens", -3, "output_tokens is negative: -3"),
    ("output_tokens", 0, "output_tokens is 0"),
    ("prompt_tokens", 2.5, "prompt_tokens is not a whole number of tokens: 2.5"),
    ("prompt_tokens", math.nan, "prompt_tokens is NaN"),
    ("prompt_tokens", math.inf, "prompt_tokens is too large to be a number of tokens: inf"),
    ("prompt_tokens", 10**8 + 1, "prompt_tokens is too large to be a number of tokens: 1e+08"),
    ("prompt_tokens", 10**400, "too large to be a number of tokens"),
    ("prompt_tokens", None, "prompt_tokens is missing"),
    ("prompt_tokens", "", "prompt_tokens is missing"),
    ("prompt_tokens", "many", "prompt_tokens is 'many', not a number"),
    ("prompt_tokens", "1_000", "prompt_tokens is not a whole number of tokens: 1_000"),
    ("prompt_tokens", True, "prompt_tokens is 'true', not a number"),
    ("prompt_tokens", [4], "prompt_tokens is '[4]', not a number"),
    ("prompt_tokens", "\ud800", "not a number"),
    ("arrival_s", None, "arrival_s is missing"),
    ("arrival_s", math.nan, "arrival_s is NaN"),
    ("arrival_s", 1.7e12, "arrival_s is too large for a time in seconds: 1700000000000.0"),
    ("arrival_s", "noon", "arrival_s is 'noon', not a time"),
    ("arrival_s", 0.5, "arrival_s goes back in time, to 0.5: sort the rows by arrival"),
]


@pytest.mark.parametrize(("column", "cell", "reason"), MALFORMED)
def test_a_malformed_row_is_left_out_with_its_reason(
    tmp_path: Path, column: str, cell: object, reason: str
) -> None:
    columns = plain([1.0, 2.0, 3.0], [4, 5, 6], [7, 8, 9])
    columns[column] = [columns[column][0], cell, columns[column][2]]
    trace = load_trace(write(tmp_path, ".jsonl", columns))
    assert trace.output_tokens.tolist() == [7, 9]
    assert trace.arrival_s.tolist() == [0.0, 2.0]
    (rejection,) = trace.rejected
    assert rejection.row == 2
    assert reason in rejection.reason
    with pytest.raises(InputError, match=r"^t\.jsonl, row 2: .*in all: 1\).*--skip-malformed$"):
        trace.refuse_rejected()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_the_first_thing_wrong_with_a_row_is_named(tmp_path: Path, suffix: str) -> None:
    columns = plain([1.0, None, 0.5, 2.0], [4, -1, -1, 5], [7, -1, -1, 8])
    trace = load_trace(write(tmp_path, suffix, columns))
    assert [tuple(rejection) for rejection in trace.rejected] == [
        (2, "arrival_s is missing"),
        (3, "prompt_tokens is negative: -1"),
    ]


def test_failures_of_burstgpt_are_left_out_as_such(tmp_path: Path) -> None:
    """Nearly all of them have no prompt either, which is no mistake of the file's."""
    columns = {"Timestamp": [5, 6, 7], "Request tokens": [0, 9, 9], "Response tokens": [0, 0, 4]}
    trace = load_trace(write(tmp_path, ".csv", columns))
    assert trace.output_tokens.tolist() == [4]
    assert trace.rejected == []
    assert trace.left_out == {"the request failed": 2}


@pytest.mark.parametrize("date", ["2023-02-30 00:00:00", "16 November 2023", "5"])
def test_dates_that_are_none_are_malformed(tmp_path: Path, date: str) -> None:
    dates = ["2023-11-16 18:15:46.25", date, "2023-11-16T18:15:48"]
    columns = {"TIMESTAMP": dates, "ContextTokens": [1] * 3, "GeneratedTokens": [1, 2, 3]}
    trace = load_trace(write(tmp_path, ".csv", columns))
    assert trace.arrival_s.tolist() == [0.0, 1.75]
    assert trace.rejected[0].row == 2
    assert "not a time" in trace.rejected[0].reason


def test_rows_that_go_back_are_measured_against_the_latest_before_them(tmp_path: Path) -> None:
    columns = plain([0.0, 5.0, 3.0, 4.0, 5.0, 6.0], [1] * 6, [1, 2, 3, 4, 5, 6])
    trace = load_trace(write(tmp_path, ".csv", columns))
    assert trace.output_tokens.tolist() == [1, 2, 5, 6]
    assert [rejection.row for rejection in trace.rejected] == [3, 4]


def test_lines_with_more_or_fewer_cells_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    text = 'note,arrival_s,prompt_tokens,output_tokens\n"a\nb",0,1,2\n1,2\n\n,3,4,5\n,4,5,6,7\n'
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    trace = load_trace(path)
    assert trace.output_tokens.tolist() == [2, 5]
    assert [tuple(rejection) for rejection in trace.rejected] == [
        (2, "it has 2 cells, the header has 4"),
        (4, "it has 5 cells, the header has 4"),
    ]


def test_lines_that_are_no_json_objects_are_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, ".jsonl", plain([0, 1], [2, 3], [4, 5]))
    path.write_text('{"arrival\n\n[1]\n' + path.read_text())
    trace = load_trace(path)
    assert trace.output_tokens.tolist() == [4, 5]
    assert [(row, reason[:5]) for row, reason in trace.rejected] == [(1, "not J"), (3, "not a")]


def test_limit_keeps_the_first_sound_rows(tmp_path: Path) -> None:
    columns = plain([0, 1, 2, 3, 4], [1, -1, 3, -1, 5], [1] * 5)
    path = write(tmp_path, ".parquet", columns)
    trace = load_trace(path, limit=2)
    assert trace.prompt_tokens.tolist() == [1, 3]
    assert [rejection.row for rejection in trace.rejected] == [2]
    assert [rejection.row for rejection in load_trace(path, limit=9).rejected] == [2, 4]
    assert "at least 1" in refused(path, limit=0)


def test_files_that_are_no_traces_are_refused(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "none.csv")
    (tmp_path / "a.txt").write_text("x")
    assert "not from .txt" in refused(tmp_path / "a.txt")
    (tmp_path / "a.parquet").write_text("x")
    assert "not a readable parquet file" in refused(tmp_path / "a.parquet")
    (tmp_path / "a.csv").write_bytes(b"arrival_s,prompt_tokens,output_tokens\n\xff\xfe,1,1\n")
    assert "UTF" in refused(tmp_path / "a.csv")
    for name, text in (("b.csv", "arrival_s,prompt_tokens\n"), ("c.csv", ""), ("b.jsonl", "\n")):
        (tmp_path / name).write_text(text)
        assert "empty" in refused(tmp_path / name)
    unusable = write(tmp_path, ".csv", plain([0, 1], [0, 0], [1, 1]))
    assert "none of 2 rows is usable; row 1: prompt_tokens is 0" in refused(unusable)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_damaged_parquet_file_or_unknown_columns_are_refused(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix, {"when": [1], "prompt_tokens": [2], "output_tokens": [3]})
    message = refused(path)
    assert "the columns when, prompt_tokens, output_tokens are those of no known trace" in message
    assert "rename them to arrival_s (in s)" in message
    for layout in LAYOUTS:
        assert f"{layout.name}: {', '.join(layout.columns)}" in message


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("arrival_s,prompt_tokens,output_tokens,arrival_s\n0,1,1,0\n")
    assert "several columns are called 'arrival_s'" in refused(path)


def test_damage_inside_a_parquet_file_is_refused(tmp_path: Path) -> None:
    columns = plain(np.arange(5000.0), np.arange(1, 5001), np.arange(1, 5001))
    path = write(tmp_path, ".parquet", columns)
    content = bytearray(path.read_bytes())
    content[100:4000] = bytes(3900)
    path.write_bytes(content)
    assert "not a readable parquet file" in refused(path)


def test_times_that_python_has_not_are_left_out_with_their_reasons(tmp_path: Path) -> None:
    """Nanoseconds, which no date of Python's has."""
    path = tmp_path / "t.parquet"
    lengths = {"prompt_tokens": [1, 2, 3], "output_tokens": [1, 2, 3]}
    first = 1_000_000_000_000_000_001
    times = pa.array([first, first - 6, first + 6], pa.timestamp("ns"))
    pq.write_table(pa.table({**lengths, "arrival_s": times}), path)
    trace = load_trace(path)
    np.testing.assert_allclose(trace.arrival_s, [0.0, 6e-9])
    (rejected,) = trace.rejected
    assert "goes back in time, to 2001-09-09 01:46:39.999999995: sort" in rejected.reason
    durations = pa.array([1, 2, 3], pa.duration("ns"))
    pq.write_table(pa.table({**lengths, "arrival_s": durations}), path)
    with pytest.raises(InputError, match="row 1: arrival_s is '1', not a time"):
        load_trace(path)


def test_conditions_on_a_column_of_lists_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    rows = {"arrival_s": [0, 1], "prompt_tokens": [1, 2], "output_tokens": [1, 2]}
    objects = pa.array([{"a": 1}, None])
    pq.write_table(pa.table({**rows, "beside": objects}), path)
    with pytest.raises(InputError, match=r"--where beside=1: this column of .* neither texts nor"):
        load_trace(path, where={"beside": "1"})
