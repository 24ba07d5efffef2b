"""Traces: every layout, every kind of bad row, and what may be done with a trace."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure.request_record import RequestRecord
from lengthwise.measure.results import ResultsWriter
from lengthwise.measure.run_info import RoundInfo, RunInfo
from lengthwise.workload.layouts import ARRIVAL_COLUMNS, LAYOUTS, OUTPUT_COLUMNS, PROMPT_COLUMNS
from lengthwise.workload.load_trace import load_trace
from lengthwise.workload.trace import Trace

SHARED = Path(__file__).parents[3] / "shared" / "data"
SUFFIXES = [".parquet", ".jsonl", ".csv"]


def write(folder: Path, suffix: str, columns: dict[str, Sequence[Any]], name: str = "t") -> Path:
    path = folder / f"{name}{suffix}"
    if suffix == ".jsonl":
        rows = zip(*columns.values(), strict=True)
        lines = [json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8")
    elif suffix == ".csv":
        pc.write_csv(pa.table({name: pa.array(cells) for name, cells in columns.items()}), path)
    else:
        pq.write_table(pa.table(columns), path)
    return path


def plain(arrival: Sequence[Any], prompt: Sequence[Any], output: Sequence[Any]) -> dict[str, Any]:
    return {"arrival_s": arrival, "prompt_tokens": prompt, "output_tokens": output}


def made(arrival: Sequence[float], name: str = "made", **more: Any) -> Trace:
    lengths = np.arange(1, len(arrival) + 1)
    return Trace(name, np.array(arrival, float), lengths, 10 * lengths, [], "plain", **more)


# Layouts ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize(
    ("layout", "columns"),
    [
        (
            "azure",
            {
                "TIMESTAMP": ["2023-11-16 18:15:46.6805900", "2023-11-16 18:15:47.9305900"],
                "ContextTokens": [374, 396],
                "GeneratedTokens": [44, 109],
            },
        ),
        (
            "azure",  # 2024: with an offset, and no fraction where it is 0
            {
                "TIMESTAMP": ["2024-05-10 00:00:00.750000+00:00", "2024-05-10 02:00:02+02:00"],
                "ContextTokens": [374, 396],
                "GeneratedTokens": [44, 109],
            },
        ),
        (
            "mooncake",
            {"timestamp": [27000, 28250], "input_length": [374, 396], "output_length": [44, 109]},
        ),
        (
            "bailian",
            {
                "chat_id": [159, 160],
                "timestamp": [61.25, 62.5],
                "input_length": [374, 396],
                "output_length": [44, 109],
            },
        ),
        (
            "burstgpt",
            {
                "Timestamp": [5, 6.25],
                "Session ID": ["", "6b1f"],
                "Elapsed time": [3.5, 2.0],
                "Model": ["ChatGPT", "GPT-4"],
                "Request tokens": [374, 396],
                "Response tokens": [44, 109],
                "Total tokens": [418, 505],
                "Log Type": ["API log", "Conversation log"],
            },
        ),
        (
            "servegen",
            {
                "request_id": [0, 1],
                "timestamp": [0.5, 1.75],
                "input_tokens": [374, 396],
                "output_tokens": [44, 109],
            },
        ),
        ("plain", {"arrival_s": [0, 1.25], "input_tokens": [374, 396], "output_tokens": [44, 109]}),
        (
            "plain",
            {"arrived_at": [7, 8.25], "num_prefill_tokens": [374, 396], "output_len": [44, 109]},
        ),
    ],
)
def test_a_published_layout_is_recognised(
    tmp_path: Path, suffix: str, layout: str, columns: dict[str, Sequence[Any]]
) -> None:
    trace = load_trace(write(tmp_path, suffix, columns))
    assert trace.layout == layout
    assert trace.name == f"t{suffix}"
    assert trace.arrival_s.tolist() == [0.0, 1.25]
    assert trace.prompt_tokens.tolist() == [374, 396]
    assert trace.output_tokens.tolist() == [44, 109]
    assert trace.rejected == []
    assert trace.block_hashes is None
    assert [column.dtype for column in (trace.arrival_s, trace.prompt_tokens)] == ["f8", "i8"]


def test_the_layouts_are_told_apart_by_what_they_need() -> None:
    """None hides behind another that is tried first, and each is the first for its own columns."""
    for layout in LAYOUTS:
        columns = set(layout.columns)
        assert next(each for each in LAYOUTS if set(each.columns) <= columns) is layout


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_blocks_of_prompts_are_numbered(tmp_path: Path, suffix: str) -> None:
    blocks: list[Any] = [[7, 90], None, [7, 8, 9], []]
    columns = {
        "timestamp": [0, 10, 20, 30],
        "input_length": [1024, 5, 1025, 600],
        "output_length": [1, 2, 3, 4],
        "hash_ids": blocks,
    }
    if suffix == ".csv":
        columns["hash_ids"] = [None if cell is None else json.dumps(cell) for cell in blocks]
    trace = load_trace(write(tmp_path, suffix, columns))
    assert trace.block_hashes is not None
    assert trace.block_offsets is not None
    assert trace.block_hashes.tolist() == [0, 1, 0, 2, 3]
    assert trace.block_offsets.tolist() == [0, 2, 2, 5, 5]
    assert trace.hash_tokens == 512

    later = trace.between(0.02, 0.04)
    assert later.block_hashes is not None
    assert later.block_offsets is not None
    assert later.block_hashes.tolist() == [0, 1, 2]
    assert later.block_offsets.tolist() == [0, 3, 3]


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ([0, 1, 2, 3], "more blocks of 512 tokens than the prompt fills"),
        ([0, None], "not a list of block ids"),
        ([0.5], "not a list of block ids"),
        ({"0": 1}, "not a list of block ids"),
        ("0 1", "not a list of block ids"),
    ],
)
def test_blocks_that_cannot_be_are_malformed(tmp_path: Path, cell: object, reason: str) -> None:
    columns = {
        "timestamp": [0, 10, 20],
        "input_length": [1025] * 3,
        "output_length": [1, 2, 3],
        "hash_ids": [[0], cell, [0, 1, 2]],
    }
    trace = load_trace(write(tmp_path, ".jsonl", columns))
    assert trace.output_tokens.tolist() == [1, 3]
    (rejection,) = trace.rejected
    assert rejection.row == 2
    assert reason in rejection.reason


def test_typed_columns_of_parquet_are_read(tmp_path: Path) -> None:
    times = np.array(["2024-05-10T00:00:00.25", "2024-05-10T00:00:02"], dtype="datetime64[us]")
    columns = {
        "TIMESTAMP": pa.array(times),
        "ContextTokens": pa.array([3, 4], pa.int16()),
        "GeneratedTokens": pa.array(["5", "6"]).dictionary_encode(),
    }
    trace = load_trace(write(tmp_path, ".parquet", columns))
    assert trace.arrival_s.tolist() == [0.0, 1.75]
    assert trace.output_tokens.tolist() == [5, 6]


# What Lengthwise records --------------------------------------------------------------------

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


# Bad input ----------------------------------------------------------------------------------


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(InputError) as raised:
        load_trace(path, **options)
    assert "\n" not in str(raised.value)
    return str(raised.value)


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


# Every table --------------------------------------------------------------------------------

requests = st.lists(
    st.tuples(
        st.floats(0, 1e6).map(lambda gap: round(gap, 3)),
        st.integers(1, 10**8),
        st.integers(1, 10**8),
    ),
    min_size=1,
    max_size=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    requests=requests,
    suffix=st.sampled_from(SUFFIXES),
    arrival=st.sampled_from(ARRIVAL_COLUMNS),
    prompt=st.sampled_from(PROMPT_COLUMNS[:-2]),  # with "timestamp", input_length is Mooncake's
    output=st.sampled_from(OUTPUT_COLUMNS),
)
def test_what_is_written_is_read(
    tmp_path: Path,
    requests: list[tuple[float, int, int]],
    suffix: str,
    arrival: str,
    prompt: str,
    output: str,
) -> None:
    gaps, prompts, outputs = zip(*requests, strict=True)
    times = np.cumsum(gaps)
    columns = {arrival: times.tolist(), prompt: list(prompts), output: list(outputs)}
    trace = load_trace(write(tmp_path, suffix, columns))
    trace.refuse_rejected()
    assert trace.layout == "plain"
    assert np.array_equal(trace.arrival_s, times - times[0])
    assert trace.prompt_tokens.tolist() == list(prompts)
    assert trace.output_tokens.tolist() == list(outputs)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                name: st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
                for name in ("arrival_s", "prompt_tokens", "output_tokens")
            },
        ),
        min_size=1,
        max_size=8,
    )
)
def test_every_row_is_kept_or_rejected(tmp_path: Path, rows: list[dict[str, Any]]) -> None:
    """Whatever is in a table: one line, or all of its rows accounted for."""
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    try:
        trace = load_trace(path)
    except InputError:
        refused(path)
        return
    rejected = [rejection.row for rejection in trace.rejected]
    assert len(trace) + len(rejected) == len(rows)
    assert len(set(rejected)) == len(rejected)
    assert trace.arrival_s[0] == 0


# What may be done with a trace --------------------------------------------------------------


def test_the_rate_counts_gaps() -> None:
    assert made([0.0, 1.0, 4.0]).rate == 0.5
    assert made([2.0, 2.0]).rate == math.inf
    assert made([2.0]).rate == math.inf


def test_parts_and_speeds() -> None:
    trace = made([0.0, 1.0, 1.0, 4.0])
    assert len(trace) == 4
    assert trace.first(2).prompt_tokens.tolist() == [1, 2]
    part = trace.between(1.0, 4.0)
    assert part.arrival_s.tolist() == [0.0, 0.0]
    assert part.output_tokens.tolist() == [20, 30]
    assert trace.scaled(2.0).arrival_s.tolist() == [0.0, 0.5, 0.5, 2.0]
    assert trace.scaled(2.0).rate == 2 * trace.rate
    moved = trace.with_arrivals([0.5, 1, 2, 3])
    assert moved.arrival_s.tolist() == [0.5, 1.0, 2.0, 3.0]
    assert moved.prompt_tokens is trace.prompt_tokens


def test_a_part_of_a_part_has_the_same_blocks() -> None:
    hashes, offsets = np.array([0, 1, 0, 2, 0, 1, 3]), np.array([0, 2, 4, 4, 7])
    trace = made([0, 1, 2, 3], block_hashes=hashes, block_offsets=offsets, hash_tokens=16)
    part = trace.between(1, 9)
    assert part.block_hashes is not None
    assert part.block_offsets is not None
    assert part.block_hashes.tolist() == [0, 2, 0, 1, 3]
    assert part.block_offsets.tolist() == [0, 2, 2, 5]
    assert part.first(1).block_hashes.tolist() == [0, 1]  # type: ignore[union-attr]
    assert part.hash_tokens == 16


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda trace: trace.first(0), "0 requests were asked for, the trace has 3"),
        (lambda trace: trace.first(4), "ask for 1 to 3"),
        (lambda trace: trace.between(5, 9), "no request arrives between 5 s and 9 s"),
        (lambda trace: trace.between(2, 1), "no request arrives"),
        (lambda trace: trace.scaled(0.0), "speed"),
        (lambda trace: trace.scaled(math.nan), "speed"),
        (lambda trace: trace.with_arrivals([0, 1]), "2 arrival times, 3 prompt lengths"),
        (lambda trace: trace.with_arrivals([0, 2, 1]), "never decreasing"),
        (lambda trace: trace.with_arrivals([-1, 0, 1]), "from 0"),
        (lambda trace: trace.with_arrivals([0, 1, math.nan]), "finite"),
        (
            lambda trace: replace(trace, prompt_tokens=trace.prompt_tokens - 1),
            "at least one token",
        ),
    ],
)
def test_refusals_say_what_is_wrong(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(made([0.0, 1.0, 4.0]))


@pytest.mark.parametrize(
    ("name", "count", "prompt", "output", "rate"),
    [("conv", 19_366, 1155, 211, 5.53), ("code", 8_819, 2048, 28, 2.57)],
)
def test_the_real_traces_are_what_their_description_says(
    name: str, count: int, prompt: int, output: int, rate: float
) -> None:
    path = SHARED / f"trace_azure2023_{name}.parquet"
    if not path.exists():
        pytest.skip(f"real data is not there: {path.name}")
    trace = load_trace(path)
    trace.refuse_rejected()
    assert len(trace) == count
    assert round(float(trace.prompt_tokens.mean())) == prompt
    assert round(float(trace.output_tokens.mean())) == output
    assert round(trace.rate, 2) == rate
