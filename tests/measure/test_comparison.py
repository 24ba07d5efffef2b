"""Policies against fcfs: ratios are paired, the gap is the oracle's, and flags are found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from lengthwise.measure import (
    Comparison,
    PolicyResult,
    ResultsWriter,
    RoundInfo,
    Spread,
    compare,
    read_results,
)
from lengthwise.measure.results import VIRTUAL
from lengthwise.measure.wording import headline, load_title, seconds
from tests.support.measure_rounds import RUN, append_round, failed, write_run


def compared(folder: Path) -> Comparison:
    return compare(read_results(folder))


def result_of(comparison: Comparison, policy: str, load: str = "burst") -> PolicyResult:
    return next(each for each in comparison.results if (each.policy, each.load) == (policy, load))


def test_ratios_are_paired_and_keep_their_spread(tmp_path: Path) -> None:
    write_run(tmp_path)
    comparison = compared(tmp_path)
    assert (comparison.baseline, comparison.oracle) == ("fcfs", "oracle")
    ltr = result_of(comparison, "ltr")
    assert ltr.ratios["mean_e2el_ms"] == Spread(3.0, 2.0, 4.0)
    assert ltr.ratios["max_e2el_ms"] == Spread(3.0, 2.0, 4.0)
    # (8 − 4) / (8 − 2) and (8 − 2) / (8 − 1)
    assert ltr.gap_closed is not None
    assert ltr.gap_closed.low == pytest.approx(4 / 6)
    assert ltr.gap_closed.high == pytest.approx(6 / 7)
    assert result_of(comparison, "oracle").gap_closed == Spread(1.0, 1.0, 1.0)
    assert result_of(comparison, "fcfs").gap_closed == Spread(0.0, 0.0, 0.0)


def test_a_ratio_needs_the_same_repeat(tmp_path: Path) -> None:
    """A machine that is 10× slower in the second repeat changes no ratio."""
    writer = ResultsWriter(tmp_path, RUN)
    append_round(writer, 0, "fcfs", [2.0, 4.0], repeat=0)
    append_round(writer, 1, "ltr", [1.0, 2.0], repeat=0)
    append_round(writer, 2, "ltr", [10.0, 20.0], repeat=1)
    append_round(writer, 3, "fcfs", [20.0, 40.0], repeat=1)
    append_round(writer, 4, "ltr", [0.001, 0.002], repeat=2)  # stopped before fcfs had its turn
    comparison = compared(tmp_path)
    assert result_of(comparison, "ltr").ratios["mean_e2el_ms"] == Spread(2.0, 2.0, 2.0)
    assert result_of(comparison, "ltr").gap_closed is None


def test_figures_are_medians_of_rounds_and_counts_are_sums(tmp_path: Path) -> None:
    write_run(tmp_path)
    summary = result_of(compared(tmp_path), "ltr").summary()
    assert summary["mean_e2el_ms"] == pytest.approx(3000)
    assert summary["completed"] == 6
    assert summary["total_input_tokens"] == 60
    assert summary["total_output_tokens"] == 12
    assert summary["max_concurrent_requests"] == 3


def test_without_fcfs_there_are_no_ratios(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    append_round(writer, 0, "ltr", [1.0])
    append_round(writer, 1, "oracle", [1.0])
    comparison = compared(tmp_path)
    assert comparison.baseline is None
    assert all(each.ratios == {} and each.gap_closed is None for each in comparison.results)
    assert "add fcfs" in headline(comparison)


@pytest.mark.parametrize("gain", [0.0, 0.009, -0.5])
def test_an_oracle_that_gains_next_to_nothing_leaves_no_gap(tmp_path: Path, gain: float) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    append_round(writer, 0, "fcfs", [1.0, 2.0])
    append_round(writer, 1, "ltr", [1.1, 2.0])
    append_round(writer, 2, "oracle", [1.0 - gain, 2.0 - gain])
    assert result_of(compared(tmp_path), "ltr").gap_closed is None


def test_variants_of_the_oracle_and_the_baseline(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    labels = ("fcfs:max_wait_s=9", "fcfs", "oracle:max_overtakes=5", "oracle-sjf")
    for number, policy in enumerate(labels):
        append_round(writer, number, policy, [1.0])
    comparison = compared(tmp_path)
    assert comparison.baseline == "fcfs"
    assert comparison.oracle == "oracle:max_overtakes=5"


def test_rounds_are_flagged_but_stay(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    for number, capacity in enumerate((1000.0, 1090.0, 880.0)):
        append_round(writer, number, "fcfs", [1.0], repeat=number, capacity=capacity)
    append_round(writer, 3, "fcfs", [1.0], load="1.2", offered=1.3, capacity=None)
    append_round(writer, 4, "ltr", [1.0], load="1.2", offered=1.0, capacity=None)
    info = RoundInfo(5, "ltr", "burst", 0, flags=("the engine restarted",))
    writer.append(info, [failed(0)])
    comparison = compared(tmp_path)
    assert [each.flags for each in comparison.rounds] == [
        [],
        [],
        ["capacity -12% against the run's median"],
        [],
        ["load 1.2 was asked for, 1.00 was offered"],
        ["the engine restarted", "failed requests, in no latency: 1"],
    ]
    fcfs = result_of(comparison, "fcfs")
    assert (len(fcfs.rounds), fcfs.flagged) == (3, 1)


def test_in_virtual_time_no_machine_drifts(tmp_path: Path) -> None:
    """Each repeat is another draw of requests, with a capacity of its own."""
    writer = ResultsWriter(tmp_path, replace(RUN, engine=VIRTUAL))
    for number, capacity in enumerate((1000.0, 1200.0, 800.0)):
        append_round(writer, number, "fcfs", [1.0], repeat=number, capacity=capacity)
    comparison = compared(tmp_path)
    assert comparison.capacity == Spread(1000.0, 800.0, 1200.0)
    assert all(not each.flags for each in comparison.rounds)


def test_a_client_that_sends_late_is_flagged(tmp_path: Path) -> None:
    from tests.support.measure_rounds import answered

    late = answered(0, [0.5, 1.0], sent_s=1.0)
    late.scheduled_s = 0.8
    writer = ResultsWriter(tmp_path, RUN)
    writer.append(RoundInfo(0, "fcfs", "rate=3", 0), [late])
    assert compared(tmp_path).rounds[0].flags == ["the client sent late: p99 200 ms"]


def test_loads_that_need_no_clock_come_first(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    number = 0
    for load in ("1.2", "rate=3", "trace=2", "concurrency=8", "burst"):
        for policy, latency in (("fcfs", 2.0), ("ltr", 1.0)):
            append_round(writer, number, policy, [latency], load=load)
            number += 1
    comparison = compared(tmp_path)
    loads = [load for load, _ in comparison.by_load()]
    assert loads == ["concurrency=8", "burst", "1.2", "rate=3", "trace=2"]
    assert [load_title(load) for load in loads] == [
        "8 clients in a closed loop",
        "All at once",
        "1.2 \N{MULTIPLICATION SIGN} capacity",
        "3 requests/s",
        "The trace, 2 times as fast",
    ]


def test_headline_leads_with_a_policy_that_can_be_deployed(tmp_path: Path) -> None:
    write_run(tmp_path)
    assert headline(compared(tmp_path)) == (
        "All at once: ltr has a 3.00× lower mean latency and takes 3.00× less time per output "
        "token than fcfs, median of 2 rounds; its p99 latency is 0.33× that of fcfs; it gets "
        "76 % of the oracle's gain."
    ).replace("×", "\N{MULTIPLICATION SIGN}")


def test_headline_does_not_boast(tmp_path: Path) -> None:
    writer = ResultsWriter(tmp_path, RUN)
    append_round(writer, 0, "fcfs", [1.0])
    assert "nothing to compare" in headline(compared(tmp_path))
    append_round(writer, 1, "ltr", [2.0])
    assert headline(compared(tmp_path)).startswith("All at once: no policy lowered the mean")


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [(12345.0, "12.3"), (999.6, "1.000"), (4.2, "0.0042"), (0.0, "0"), (None, "\N{EM DASH}")],
)
def test_times_have_three_digits(milliseconds: float | None, text: str) -> None:
    assert seconds(milliseconds) == text
