"""Loads and policies as users write them, and the arrival times that follow."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from lengthwise.compare.specs import (
    Burst,
    Capacity,
    Clients,
    Load,
    Rate,
    Trace,
    Turns,
    arrival_times,
    parse_loads,
    parse_policies,
    read_trace,
    turns_of,
)
from lengthwise.errors import InputError


def loads(*names: str, **more: object) -> list[Load]:
    options: dict[str, object] = {"rates": (), "clients": (), "burst": False, "trace": None}
    return parse_loads(names, **{**options, **more})  # type: ignore[arg-type]


def test_loads_come_in_the_order_given_and_once() -> None:
    assert loads("1.05,burst", "1.2", "1.05") == [Capacity(1.05), Burst(), Capacity(1.2)]
    assert loads(rates=[3.0], clients=[8], burst=True) == [Rate(3.0), Clients(8), Burst()]


def test_without_any_load_it_is_a_burst() -> None:
    assert loads() == [Burst()]


def test_labels_name_the_load_in_records() -> None:
    labels = [load.label for load in (Burst(), Capacity(1.20), Rate(3.0), Clients(8), Trace([], 2))]
    assert labels == ["burst", "1.2", "rate=3", "concurrency=8", "trace=2"]


@pytest.mark.parametrize("name", ["much", "0", "-1", "nan", "inf"])
def test_a_load_that_makes_no_sense_is_refused(name: str) -> None:
    with pytest.raises(InputError):
        loads(name)


def times(load: Load, count: int = 2000) -> list[float] | None:
    return arrival_times(load, count, cv=1.0, seed=5, capacity_requests_per_s=10.0)


def test_a_multiple_of_capacity_sets_the_rate() -> None:
    arrivals = times(Capacity(1.2))
    assert arrivals is not None
    assert 2000 / arrivals[-1] == pytest.approx(12.0)
    by_rate = times(Rate(12.0))
    assert by_rate is not None
    assert arrivals == pytest.approx(np.array(by_rate) * (2000 / 12 / by_rate[-1]))


def test_bursts_and_traces_say_their_times_and_closed_loops_do_not() -> None:
    assert times(Burst(), 3) == [0.0, 0.0, 0.0]
    assert times(Trace([5.0, 6.0, 9.0], 2.0), 3) == [0.0, 0.5, 2.0]
    assert times(Clients(4)) is None


def test_a_trace_is_read_from_its_column(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    parquet.write_table(pa.table({"arrival_s": np.array([0.0, 1.5])}), path)
    assert read_trace(path, 2.0) == Trace((0.0, 1.5), 2.0)
    parquet.write_table(pa.table({"start": [1]}), path)
    with pytest.raises(InputError, match=r"the columns start are those of no known trace"):
        read_trace(path, 1.0)
    parquet.write_table(pa.table({"arrival_s": [0.0, None]}), path)
    with pytest.raises(InputError, match="row 2: arrival_s is missing"):
        read_trace(path, 1.0)
    with pytest.raises(InputError, match="no such file"):
        read_trace(tmp_path / "absent.parquet", 1.0)


@pytest.mark.parametrize(
    "column",
    [
        pa.array(["0.5", "2"]),
        pa.array(["2024-01-01T00:00:00", "2024-01-01T00:00:01.5"]),
        pa.array([datetime(2024, 1, 1), datetime(2024, 1, 1, 0, 0, 1, 500_000)]),
    ],
    ids=["text", "ISO", "timestamps"],
)
def test_times_are_read_as_of_any_trace(tmp_path: Path, column: pa.Array) -> None:
    path = tmp_path / "trace.parquet"
    parquet.write_table(pa.table({"arrival_s": column}), path)
    first, second = read_trace(path, 1.0).times_s
    assert second - first == 1.5


def test_a_time_that_is_none_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.parquet"
    for column, said in (
        (["0", "soon"], "row 2: arrival_s is 'soon', not a time"),
        ([1.0, float("nan")], "row 2: arrival_s is NaN"),
        ([[1.0]], "row 1: arrival_s is [1.0], not a time"),
    ):
        parquet.write_table(pa.table({"arrival_s": column}), path)
        with pytest.raises(InputError, match=re.escape(said)):
            read_trace(path, 1.0)


def test_a_trace_of_any_layout_brings_its_sessions(tmp_path: Path) -> None:
    path = tmp_path / "mooncake.jsonl"
    turn = '"input_length": 5, "output_length": 2'
    path.write_text(
        f'{{"session_id": "a", "timestamp": 0, {turn}}}\n'
        f'{{"session_id": "b", "timestamp": 500, {turn}}}\n'
        f'{{"session_id": "a", "delay": 3000, {turn}}}\n'
    )
    found = read_trace(path, 2.0)
    assert found.turns == Turns((-1, -1, 0), (0.0, 0.0, 3.0))
    assert turns_of(found, 3) == Turns((-1, -1, 0), [0.0, 0.0, 1.5])
    assert turns_of(Burst(), 3) is None


def test_policies_keep_their_specs_as_labels() -> None:
    settings = parse_policies(["fcfs, srpt:max_overtakes=50;blend=0.9", "oracle"], "prompt-length")
    assert list(settings) == ["fcfs", "srpt:max_overtakes=50;blend=0.9", "oracle"]
    bounded = settings["srpt:max_overtakes=50;blend=0.9"]
    assert (bounded.policy, bounded.max_overtakes, bounded.blend) == ("srpt", 50, 0.9)
    assert bounded.predictor == "prompt-length"
    assert settings["oracle"].predictor == "oracle"


@pytest.mark.parametrize(
    ("specs", "predictor", "words"),
    [
        (["fcfs,fcfs"], None, "given twice"),
        ([" , "], None, "no policy was given"),
        (["srpt"], None, "add --predictor DIR"),
        (["srtp"], None, "did you mean 'srpt'"),
        (["fcfs:max_overtake=3"], None, "max_overtakes"),
    ],
)
def test_policies_that_cannot_run_are_refused(
    specs: list[str], predictor: str | None, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        parse_policies(specs, predictor)


def test_fcfs_and_oracles_need_no_predictor() -> None:
    assert list(parse_policies(["fcfs,oracle"], None)) == ["fcfs", "oracle"]
