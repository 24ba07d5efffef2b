"""Files of a run: what is written comes back, and what is broken is refused or left out."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import (
    Records,
    RequestRecord,
    ResultsWriter,
    RoundInfo,
    read_records,
    read_results,
    write_records,
)
from tests.support.measure_rounds import RUN, answered, append_round, failed, write_run


def assert_same(found: Records, expected: Records) -> None:
    for member in dataclasses.fields(Records):
        np.testing.assert_array_equal(getattr(found, member.name), getattr(expected, member.name))


seconds = st.floats(0, 1e6) | st.just(math.nan)
rows = st.builds(
    RequestRecord,
    round=st.integers(0, 5),
    policy=st.text(max_size=5),
    load=st.sampled_from(["burst", "1.2"]),
    request=st.integers(0, 1000),
    scheduled_s=seconds,
    sent_s=seconds,
    finish_s=seconds,
    token_times=st.lists(st.floats(0, 1000, width=32), max_size=4),
    output_tokens=st.integers(0, 2**31 - 1),
    expected_tokens=seconds,
    error=st.none() | st.text(max_size=5),
)


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
@settings(max_examples=15, deadline=None)
@given(written=st.lists(rows, max_size=5))
def test_records_come_back_as_written(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, written: list[RequestRecord]
) -> None:
    path = tmp_path_factory.mktemp("records") / f"records{suffix}"
    write_records(written, path)
    assert_same(read_records(path), Records.from_rows(written))


def test_a_run_comes_back_as_written(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    info = RoundInfo(
        0, "srpt", "1.2", 0, 1.17, 900.0, "2026-11-20T10:00:00+00:00", {"fallbacks": 2}, ("slow",)
    )
    written = [answered(0, [0.5, 1.0]), failed(1)]
    writer.append(info, written)
    results = read_results(tmp_path)
    assert results.run == RUN
    assert results.problems == []
    assert [each.info for each in results.rounds] == [info]
    assert_same(results.rounds[0].records, Records.from_rows(written))


def test_a_second_run_replaces_the_first(tmp_path: Path) -> None:
    write_run(tmp_path)
    writer = ResultsWriter(tmp_path, RUN)
    append_round(writer, 0, "fcfs", [1.0])
    assert len(read_results(tmp_path).rounds) == 1
    assert len(list(tmp_path.glob("round-*.parquet"))) == 1


def test_a_run_that_was_cut_off_keeps_its_whole_rounds(tmp_path: Path) -> None:
    write_run(tmp_path)
    # Cut off while a round's requests were written, and in the middle of a round's line.
    (tmp_path / "round-006.parquet.part").write_bytes(b"PAR1\x00\x00")
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write('{"round": 6, "policy": "fc')
    results = read_results(tmp_path)
    assert [each.info.round for each in results.rounds] == [0, 1, 2, 3, 4, 5]
    assert results.problems == ["line 8 of rounds.jsonl is cut off or damaged: left out"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"round": 6, "policy": "\xff"}', "is cut off or damaged"),
        (b'{"round": 6, "policy": 7, "load": "burst", "repeat": 0}', "is incomplete"),
        (b'{"round": 6, "policy": "ltr", "load": "burst", "repeat": [1]}', "is incomplete"),
        (b'{"round": 6, "policy": "ltr", "load": "burst"}', "is incomplete"),
        (
            b'{"round": 6, "policy": "l", "load": "1", "repeat": 0, "offered_load": "much"}',
            "is incomplete",
        ),
        (
            b'{"round": 6, "policy": "l", "load": "1", "repeat": 0, "counters": {"a": "x"}}',
            "is incomplete",
        ),
        (b'["round"]', "is incomplete"),
    ],
)
def test_a_line_that_says_no_round_is_left_out(tmp_path: Path, line: bytes, said: str) -> None:
    write_run(tmp_path)
    lines = (tmp_path / "rounds.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rounds.jsonl").write_bytes(b"".join([*lines[:3], line + b"\n", *lines[3:]]))
    results = read_results(tmp_path)
    assert len(results.rounds) == 6
    assert results.problems == [f"line 4 of rounds.jsonl {said}: left out"]


@pytest.mark.parametrize(
    ("name", "column", "said"),
    [
        ("output_tokens", ["a few", "many"], "'output_tokens' is string, not int32"),
        ("output_tokens", [3, None], "'output_tokens' lacks a value"),
        ("sent_s", [[1.0], [2.0]], "'sent_s' is list"),
        ("policy", ["fcfs", None], "'policy' lacks a value"),
    ],
)
def test_a_column_of_other_things_is_one_line(
    tmp_path: Path, name: str, column: list[object], said: str
) -> None:
    path = tmp_path / "records.parquet"
    write_records([answered(0, [0.5]), answered(1, [0.5])], path)
    table = pq.read_table(path)
    place = table.column_names.index(name)
    pq.write_table(table.set_column(place, name, [column]), path)
    with pytest.raises(InputError) as raised:
        read_records(path)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "line",
    [b'{"request": "first"}', b'{"request": null}', b'{"policy": "\xff"}', b'{"round": 1e99}'],
)
def test_json_lines_of_other_things_are_one_line(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "records.jsonl"
    write_records([answered(0, [0.5])], path)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(InputError, match=r"run it again"):
        read_records(path)


def test_times_that_are_missing_never_happened(tmp_path: Path) -> None:
    path = tmp_path / "records.parquet"
    write_records([answered(0, [0.5]), answered(1, [0.5])], path)
    table = pq.read_table(path)
    place = table.column_names.index("finish_s")
    pq.write_table(table.set_column(place, "finish_s", [[0.5, None]]), path)
    assert read_records(path).completed.tolist() == [True, False]


def test_a_round_without_its_requests_is_left_out(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "round-001.parquet").unlink()
    whole = (tmp_path / "round-002.parquet").read_bytes()
    (tmp_path / "round-002.parquet").write_bytes(whole[: len(whole) // 2])
    results = read_results(tmp_path)
    assert [each.info.round for each in results.rounds] == [0, 3, 4, 5]
    assert results.problems == [
        "round 1 was left out: round-001.parquet is missing",
        "round 2 was left out: round-002.parquet is damaged",
    ]


def test_json_lines_that_were_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    write_records([answered(0, [0.5, 1.0]), answered(1, [0.5])], path)
    text = path.read_text()
    path.write_text(text[: len(text) - 40])
    assert read_records(path).request.tolist() == [0]
    lines = text.splitlines()
    path.write_text("\n".join([lines[0], lines[1][:20], lines[2]]))
    with pytest.raises(InputError, match=r"records\.jsonl:2 is not JSON"):
        read_records(path)


def replace_schema(path: Path, schema: str) -> None:
    if path.suffix == ".parquet":
        table = pq.read_table(path)
        pq.write_table(table.replace_schema_metadata({"schema": schema}), path)
    elif path.suffix == ".jsonl":
        lines = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps({"schema": schema}), *lines[1:]]))
    else:
        path.write_text(json.dumps({**json.loads(path.read_text()), "schema": schema}))


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("run.json", "lengthwise.run/2"),
        ("rounds.jsonl", "lengthwise.rounds/7"),
        ("round-000.parquet", "lengthwise.records/2"),
    ],
)
def test_newer_files_are_refused(tmp_path: Path, name: str, schema: str) -> None:
    write_run(tmp_path)
    replace_schema(tmp_path / name, schema)
    with pytest.raises(InputError, match="newer than this Lengthwise reads") as caught:
        read_results(tmp_path)
    assert "\n" not in str(caught.value)
    assert "pip install --upgrade" in str(caught.value)


@pytest.mark.parametrize("schema", ["", "lengthwise.steps/1", "lengthwise.records/x"])
def test_files_of_another_kind_are_refused(tmp_path: Path, schema: str) -> None:
    path = tmp_path / "records.parquet"
    write_records([answered(0, [0.5])], path)
    replace_schema(path, schema)
    with pytest.raises(InputError, match=r"is not a lengthwise\.records file"):
        read_records(path)


def test_folders_without_results_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a folder"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"run\.json does not exist"):
        read_results(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        read_results(tmp_path)
    (tmp_path / "run.json").write_text('{"schema": "lengthwise.run/1"}')
    with pytest.raises(InputError, match=r"run\.json is incomplete"):
        read_results(tmp_path)
    ResultsWriter(tmp_path, RUN)
    with pytest.raises(InputError, match="no finished round"):
        read_results(tmp_path)


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="give another folder"):
        ResultsWriter(tmp_path / "file", RUN)
