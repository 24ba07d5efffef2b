"""Traces in a table: every published layout is recognised by its columns."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lengthwise.workload.layouts import LAYOUTS
from lengthwise.workload.trace import load_trace
from tests.support.trace_files import SUFFIXES, write


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
