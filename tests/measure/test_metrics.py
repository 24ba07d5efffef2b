"""The metrics against figures worked out by hand, and what holds for any round."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.measure import Records, RequestRecord, parse_objectives, request_metrics, summarise
from tests.support.measure_rounds import answered, failed


def approximately(value: float) -> object:
    return pytest.approx(value, rel=1e-5)


@pytest.fixture
def round_of_three() -> Records:
    """Sent at 0, 0 and 1 s: three tokens, one token, and two tokens after a long gap."""
    return Records.from_rows(
        [
            answered(0, [0.5, 0.7, 1.1]),
            answered(1, [2.0]),
            answered(2, [0.25, 4.25], sent_s=1.0),
        ]
    )


def test_times_of_each_request(round_of_three: Records) -> None:
    each = request_metrics(round_of_three)
    np.testing.assert_allclose(each.ttft, [0.5, 2.0, 0.25])
    np.testing.assert_allclose(each.e2el, [1.1, 2.0, 4.25])
    np.testing.assert_allclose(each.tpot, [0.3, math.nan, 4.0])
    np.testing.assert_allclose(each.per_token, [1.1 / 3, 2.0, 4.25 / 2])
    np.testing.assert_allclose(each.longest_gap, [0.4, math.nan, 4.0], rtol=1e-6)
    np.testing.assert_allclose(each.max_waiting, [0.5, 2.0, 4.0], rtol=1e-6)
    np.testing.assert_allclose(np.sort(each.gaps), [0.2, 0.4, 4.0], rtol=1e-6)


def test_summary_of_a_round(round_of_three: Records) -> None:
    summary = summarise(round_of_three)
    assert summary["completed"] == 3
    assert summary["failed"] == 0
    assert summary["duration"] == approximately(5.25)
    assert summary["total_input_tokens"] == 30
    assert summary["total_output_tokens"] == 6
    assert summary["request_throughput"] == approximately(3 / 5.25)
    assert summary["output_throughput"] == approximately(6 / 5.25)
    assert summary["total_token_throughput"] == approximately(36 / 5.25)
    assert summary["request_goodput"] is None
    assert summary["mean_ttft_ms"] == approximately(2750 / 3)
    assert summary["median_ttft_ms"] == approximately(500)
    assert summary["mean_e2el_ms"] == approximately(7350 / 3)
    assert summary["max_e2el_ms"] == approximately(4250)
    assert summary["mean_latency_per_output_token_ms"] == approximately(
        (1100 / 3 + 2000 + 2125) / 3
    )
    assert summary["max_waiting_time_ms"] == approximately(4000)
    assert summary["mean_max_waiting_time_ms"] == approximately(6500 / 3)
    # All three are open at some time within the second from 1 to 2 s.
    assert summary["max_concurrent_requests"] == 3


def test_one_token_answers_have_no_tpot(round_of_three: Records) -> None:
    assert summarise(round_of_three)["mean_tpot_ms"] == approximately(2150)
    alone = summarise(Records.from_rows([answered(0, [2.0])]))
    assert math.isnan(alone["mean_tpot_ms"] or 0.0)
    assert math.isnan(alone["p99_itl_ms"] or 0.0)
    assert alone["max_waiting_time_ms"] == approximately(2000)


def test_failed_requests_count_as_failed_and_nowhere_else(round_of_three: Records) -> None:
    rows = [
        failed(0),
        answered(1, [0.5, 0.7, 1.1]),
        answered(2, [2.0]),
        failed(3),
        answered(4, [0.25, 4.25], sent_s=1.0),
    ]
    objectives = {"ttft": 500.0}
    # A stream that broke off has tokens, but no end.
    broken = answered(5, [0.1, 90.0])
    broken.finish_s, broken.error = math.nan, "connection reset"
    with_failures = summarise(Records.from_rows([*rows, broken]), objectives)
    assert with_failures.pop("failed") == 3
    without = summarise(round_of_three, objectives)
    without.pop("failed")
    assert with_failures == pytest.approx(without, rel=1e-6, nan_ok=True)


def test_no_request_at_all_and_none_that_completed() -> None:
    for rows in ([], [failed(0), failed(1)]):
        summary = summarise(Records.from_rows(rows), {"ttft": 500.0})
        assert summary["completed"] == 0
        assert summary["failed"] == len(rows)
        assert math.isnan(summary["mean_e2el_ms"] or 0.0)


def test_goodput_counts_requests_that_meet_every_objective(round_of_three: Records) -> None:
    def good(text: str) -> float:
        goodput = summarise(round_of_three, parse_objectives([text]))["request_goodput"]
        assert goodput is not None
        return goodput * 5.25

    assert good("ttft:500") == approximately(2)
    assert good("e2el:2000") == approximately(2)
    assert good("ttft:500 e2el:2000") == approximately(1)
    assert good("tpot:10") == approximately(1)  # the answer of one token, as in vLLM


@pytest.mark.parametrize("text", ["ttft", "ttft:fast", "latency:5", "tpot:-1", "e2el:nan"])
def test_objectives_that_make_no_sense(text: str) -> None:
    with pytest.raises(InputError, match="service-level objective"):
        parse_objectives([text])


def test_queue_times_and_scheduling_counts() -> None:
    first, second = answered(0, [1.0]), answered(1, [1.0])
    first.queue_s, first.preemptions, first.overtaken = 0.25, 2, 1
    second.overtaken = 7
    summary = summarise(Records.from_rows([first, second]))
    assert summary["mean_queue_ms"] == approximately(250)
    assert summary["preemptions"] == 2
    assert summary["overtakes"] == 8
    assert summary["max_overtaken"] == 7


requests = st.lists(
    st.tuples(
        st.floats(0, 100),
        st.lists(st.floats(0.0078125, 5.0, width=32), min_size=1, max_size=6),
        st.booleans(),
    ),
    min_size=1,
    max_size=8,
)


def rows_of(drawn: list[tuple[float, list[float], bool]]) -> list[RequestRecord]:
    return [
        answered(index, np.cumsum(gaps).tolist(), sent_s=sent) if completed else failed(index)
        for index, (sent, gaps, completed) in enumerate(drawn)
    ]


@given(requests)
def test_percentiles_are_in_order_and_bound_the_mean(
    drawn: list[tuple[float, list[float], bool]],
) -> None:
    summary = summarise(Records.from_rows(rows_of(drawn)))
    assert summary["completed"] == sum(completed for _, _, completed in drawn)
    for name in ("ttft", "tpot", "itl", "e2el", "latency_per_output_token"):
        keys = [f"p50_{name}_ms", f"p90_{name}_ms", f"p95_{name}_ms", f"p99_{name}_ms"]
        figures = [float(summary[key] or 0.0) for key in [*keys, f"max_{name}_ms"]]
        if not math.isnan(figures[0]):
            assert figures == sorted(figures)
            assert float(summary[f"mean_{name}_ms"] or 0.0) <= figures[-1] * (1 + 1e-9)
    if summary["completed"]:
        assert float(summary["max_waiting_time_ms"] or 0) >= float(summary["max_ttft_ms"] or 0)
        assert float(summary["max_e2el_ms"] or 0) >= float(summary["max_ttft_ms"] or 0)


@given(requests, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(
    drawn: list[tuple[float, list[float], bool]], random: object
) -> None:
    rows = rows_of(drawn)
    shuffled = list(rows)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    objectives = {"ttft": 500.0}
    expected = summarise(Records.from_rows(rows), objectives)
    assert summarise(Records.from_rows(shuffled), objectives) == pytest.approx(
        expected, nan_ok=True
    )


def test_the_same_figures_as_vllm(round_of_three: Records) -> None:
    pytest.importorskip("vllm", reason="needs vLLM to compare with")
    from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
    from vllm.benchmarks.serve import calculate_metrics

    rows = [answered(0, [0.5, 0.7, 1.1]), answered(1, [2.0]), answered(2, [0.25, 4.25], sent_s=1.0)]
    outputs = [
        RequestFuncOutput(
            success=True,
            latency=row.finish_s - row.sent_s,
            output_tokens=row.output_tokens,
            ttft=row.first_token_s - row.sent_s,
            itl=np.diff(row.token_times).tolist(),
            prompt_len=row.prompt_tokens,
            start_time=row.sent_s,
        )
        for row in rows
    ]
    summary = summarise(round_of_three, {"ttft": 500.0, "e2el": 2000.0})
    duration = float(summary["duration"] or 0.0)
    theirs, _ = calculate_metrics(
        [], outputs, duration, None, [50, 90, 95, 99], {"ttft": 500.0, "e2el": 2000.0}
    )
    for name in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "std"):
            key = f"{statistic}_{name}_ms"
            assert summary[key] == approximately(getattr(theirs, key)), key
        for percent, value in getattr(theirs, f"percentiles_{name}_ms"):
            assert summary[f"p{percent}_{name}_ms"] == approximately(value)
    for key in (
        "completed", "failed", "request_throughput", "request_goodput", "output_throughput",
        "total_token_throughput", "max_output_tokens_per_s", "max_concurrent_requests",
    ):  # fmt: skip
        assert summary[key] == approximately(getattr(theirs, key)), key
