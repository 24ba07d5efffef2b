"""Traces: what is written is read again, and what may be done with a trace."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.workload.layouts import ARRIVAL_COLUMNS, OUTPUT_COLUMNS, PROMPT_COLUMNS
from lengthwise.workload.trace import Trace, load_trace
from tests.support.strange_rows import strange_rows
from tests.support.trace_files import SUFFIXES, refused, write

SHARED = Path(__file__).parents[3] / "shared" / "data"


def made(arrival: Sequence[float], name: str = "made", **more: Any) -> Trace:
    lengths = np.arange(1, len(arrival) + 1)
    return Trace(name, np.array(arrival, float), lengths, 10 * lengths, [], "plain", **more)


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
@given(strange_rows("arrival_s", "prompt_tokens", "output_tokens"))
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
    turns = made([0.0, 1.0, 4.0], after=np.array([-1, 0, -1]), delay_s=np.array([0.0, 1.0, 0.0]))
    assert turns.scaled(2.0).delay_s.tolist() == [0.0, 0.5, 0.0]  # type: ignore[union-attr]
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
