"""Long traces: read in parts, in memory that does not grow with the rows."""

from __future__ import annotations

import gzip
import runpy
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lengthwise.errors import InputError
from lengthwise.workload import column_files
from lengthwise.workload.inspection import Quantiles, inspect_trace
from lengthwise.workload.trace import load_trace
from tests.support.trace_files import lines

BENCH = Path(__file__).parents[2] / "bench"


def azure(path: Path, count: int, every_s: float = 0.5) -> Path:
    times = np.datetime64("2024-05-10T00:00:00", "us") + (np.arange(count) * every_s * 1e6).astype(
        "timedelta64[us]"
    )
    rows = [
        f"{str(time).replace('T', ' ')}+00:00,{number % 7 + 1},{number % 5}\n"
        for number, time in enumerate(times)
    ]
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(rows))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet", ".csv.gz", ".jsonl.zst"])
def test_parts_are_put_together(
    tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However a file is divided for reading, it is the same trace."""
    whole = load_trace(azure(tmp_path / "a.csv", 3_000))
    path = tmp_path / f"trace{suffix}"
    table = {
        "TIMESTAMP": [str(np.datetime64("2024-05-10", "ms") + 500 * n) for n in range(3_000)],
        "ContextTokens": [n % 7 + 1 for n in range(3_000)],
        "GeneratedTokens": [n % 5 for n in range(3_000)],
    }
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    if suffix == ".parquet":
        pq.write_table(pa.table(table), path, row_group_size=100)
    elif suffix.startswith(".jsonl"):
        lines(path.with_suffix("") if suffix.endswith(".zst") else path, rows)
    else:
        azure(tmp_path / "trace.csv", 3_000)
    if suffix == ".csv.gz":
        path.write_bytes(gzip.compress((tmp_path / "trace.csv").read_bytes()))
    elif suffix == ".jsonl.zst":
        with pa.CompressedOutputStream(str(path), "zstd") as out:
            out.write((tmp_path / "trace.jsonl").read_bytes())
    monkeypatch.setattr(column_files, "_BYTES", 4_096)
    monkeypatch.setattr(column_files, "_ROWS", 100)
    trace = load_trace(path)
    assert np.array_equal(trace.arrival_s, whole.arrival_s)
    assert np.array_equal(trace.output_tokens, whole.output_tokens)
    assert trace.left_out == {"the request has no answer": 600}
    part = load_trace(path, limit=50)
    assert np.array_equal(part.arrival_s, whole.arrival_s[:50])
    window = load_trace(path, window_s=(100, 200))
    expected = whole.between(100 - 0.5, 200 - 0.5)  # the first row has no answer, and no place
    assert np.array_equal(window.output_tokens, expected.output_tokens)
    with pytest.raises(InputError, match="no request arrives from 99999 s on"):
        load_trace(path, window_s=(99_999, None))


def test_bad_lines_keep_their_numbers_across_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = azure(tmp_path / "a.csv", 2_000)
    text = path.read_text().splitlines(keepends=True)
    text[700] = "1,2\n"
    text[1500] = "1,2,3,4\n"
    text.append("1\n")
    path.write_text("".join(text))
    monkeypatch.setattr(column_files, "_BYTES", 4_096)
    trace = load_trace(path)
    assert [rejection.row for rejection in trace.rejected] == [700, 1500, 2001]


def test_a_time_that_goes_back_is_seen_across_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"arrival_s": n, "prompt_tokens": 1, "output_tokens": 1} for n in (*range(900), 3)]
    path = lines(tmp_path / "t.jsonl", rows)
    monkeypatch.setattr(column_files, "_BYTES", 4_096)
    trace = load_trace(path)
    assert [rejection.row for rejection in trace.rejected] == [901]


def test_memory_does_not_grow_with_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A million rows are inspected in the memory that a fifth of them takes."""
    write_trace = runpy.run_path(str(BENCH / "make_azure_trace.py"))["write_trace"]
    monkeypatch.setattr(column_files, "_BYTES", 1 << 17)  # Arrow reads some of them ahead
    peaks = []
    for rows in (200_000, 1_000_000):
        path = tmp_path / f"{rows}.csv"
        write_trace(path, rows, seed=0)
        inspect_trace(path)
        tracemalloc.start()
        before = pa.total_allocated_bytes()
        found = inspect_trace(path)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.total_allocated_bytes() - before < 2**20
        assert found["records"] == rows
        assert found["rows"] + found["left_out"]["the request has no answer"] == rows
    assert peaks[1] < 1.2 * peaks[0]


def test_quantiles_of_many_are_those_of_a_sample() -> None:
    quantiles = Quantiles()
    values = np.random.default_rng(3).permutation(1_000_000)
    for part in np.array_split(values, 17):
        quantiles.add(part)
    told = quantiles.told()
    assert told["mean"] == pytest.approx(499_999.5)
    assert told["longest"] == 999_999
    assert told["median"] == pytest.approx(500_000, rel=0.02)
    assert told["p90"] == pytest.approx(900_000, rel=0.02)
    assert Quantiles().told() == {}
