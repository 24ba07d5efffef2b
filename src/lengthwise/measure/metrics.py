"""Latencies and rounds in figures, with the definitions and JSON keys of `vllm bench serve`.

Taken over from vLLM (vllm/benchmarks/serve.py, `calculate_metrics`): TTFT from sending to the first
token; TPOT = (latency − TTFT) / (output tokens − 1), answers of one token left out; ITL the gaps
between the pieces of an answer; E2EL from sending to the last token; failed requests count as
failed and nowhere else. Where no request qualifies the figure is NaN, not 0 as in vLLM.

Two more come from Fu et al., Efficient LLM Scheduling by Learning to Rank (arXiv 2408.15792):
latency per output token = E2EL / output tokens, and a request's max_waiting_time = the longer of
its TTFT and its longest gap between pieces.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.measure.results import Records

Floats = NDArray[np.float64]
Summary = dict[str, float | int | None]
PERCENTILES: Final = (50, 90, 95, 99)


def latency_figures(name: str, seconds: NDArray[np.floating]) -> dict[str, float]:
    """What `vllm bench serve` says of one kind of latency, under its keys, in ms.

    Args:
        name: of the latency, such as `ttft`.
        seconds: one for each request; those that are not finite are left out.

    Returns:
        mean_X_ms, median_X_ms, std_X_ms, p50_X_ms, p90_X_ms, p95_X_ms, p99_X_ms and max_X_ms, NaN
        where there is no latency. The longest `max_waiting_time` is `max_waiting_time_ms`.
    """
    milliseconds = seconds[np.isfinite(seconds)].astype(np.float64) * 1000
    if not len(milliseconds):
        milliseconds = np.array([np.nan])
    percentiles = np.percentile(milliseconds, PERCENTILES)
    return {
        f"mean_{name}_ms": float(milliseconds.mean()),
        f"median_{name}_ms": float(percentiles[PERCENTILES.index(50)]),
        f"std_{name}_ms": float(milliseconds.std()),
        **{
            f"p{percent}_{name}_ms": float(value)
            for percent, value in zip(PERCENTILES, percentiles, strict=True)
        },
        f"max_{name.removeprefix('max_')}_ms": float(milliseconds.max()),
    }


def parse_objectives(pairs: Iterable[str]) -> dict[str, float]:
    """Read service-level objectives such as `ttft:500 tpot:50 e2el:2000`, in ms.

    Args:
        pairs: NAME:MILLISECONDS each; a string may hold several, parted by spaces or commas.

    Raises:
        InputError: an unknown name, or a value that is no number of milliseconds ≥ 0.
    """
    objectives: dict[str, float] = {}
    for pair in " ".join(pairs).replace(",", " ").split():
        name, _, value = pair.partition(":")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = math.nan
        if name not in ("ttft", "tpot", "e2el") or not milliseconds >= 0:
            raise InputError(
                f"{pair!r} is no service-level objective: give ttft:MS, tpot:MS or e2el:MS, "
                "such as ttft:500"
            )
        objectives[name] = milliseconds
    return objectives


def good_requests(
    latencies: Mapping[str, NDArray[np.float64]], objectives: Mapping[str, float]
) -> int:
    """How many requests met every objective; an answer of one token meets any TPOT, as in vLLM.

    Args:
        latencies: `ttft`, `tpot` and `e2el` of each request, in s.
        objectives: see `parse_objectives`.
    """
    good = np.ones(len(latencies["e2el"]), np.bool_)
    for name, limit in objectives.items():
        good &= np.nan_to_num(latencies[name]) <= limit / 1000
    return int(good.sum())


@dataclass(frozen=True)
class RequestMetrics:
    """The completed requests of a round, one entry each, in s; NaN where undefined."""

    ttft: Floats
    tpot: Floats  # NaN for answers of one token
    e2el: Floats
    per_token: Floats  # E2EL / output tokens
    longest_gap: Floats  # NaN for answers that came in one piece
    max_waiting: Floats  # max(TTFT, longest gap)
    queue: Floats  # NaN where the engine did not say
    output_tokens: NDArray[np.int32]
    gaps: NDArray[np.float32]  # shape [all gaps of all requests], between an answer's pieces


def request_metrics(records: Records) -> RequestMetrics:
    """The metrics of each completed request of a round; n of `records.completed` entries each."""
    done = records.completed
    sent = records.sent_s[done]
    output_tokens = records.output_tokens[done]
    ttft = records.first_token_s[done] - sent
    e2el = records.finish_s[done] - sent
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(output_tokens > 1, (e2el - ttft) / (output_tokens - 1), np.nan)
        per_token = np.where(output_tokens > 0, e2el / output_tokens, np.nan)
    gaps, longest_gap = _gaps(records.token_times, records.token_offsets, done)
    return RequestMetrics(
        ttft=ttft,
        tpot=tpot,
        e2el=e2el,
        per_token=per_token,
        longest_gap=longest_gap,
        max_waiting=np.fmax(ttft, longest_gap),
        queue=records.queue_s[done],
        output_tokens=output_tokens,
        gaps=gaps,
    )


def summarise(records: Records, objectives: dict[str, float] | None = None) -> Summary:
    """A round's figures under the JSON keys of `vllm bench serve`, and a few more.

    Args:
        records: the requests of one round.
        objectives: see `parse_objectives`; `request_goodput` is null without.

    Returns:
        `duration` in s, counts, rates per second, and the `latency_figures` of ttft, tpot, itl,
        e2el, queue, latency_per_output_token, max_waiting_time and send_delay.
    """
    done = records.completed
    each = request_metrics(records)
    duration = _duration(records)
    per_second = 1.0 / duration if duration > 0 else math.nan
    input_tokens = int(records.prompt_tokens[done].sum(dtype=np.int64))
    output_tokens = int(each.output_tokens.sum(dtype=np.int64))
    peak_tokens, peak_requests = _peaks(records, done)
    good = None if objectives is None else good_requests(vars(each), objectives) * per_second
    delay = records.sent_s - records.scheduled_s
    summary: Summary = {
        "duration": duration,
        "completed": int(done.sum()),
        "failed": int((~done).sum()),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": int(done.sum()) * per_second,
        "request_goodput": good,
        "output_throughput": output_tokens * per_second,
        "total_token_throughput": (input_tokens + output_tokens) * per_second,
        "max_output_tokens_per_s": peak_tokens,
        "max_concurrent_requests": peak_requests,
    }
    for name, values in (
        ("ttft", each.ttft),
        ("tpot", each.tpot),
        ("itl", each.gaps),
        ("e2el", each.e2el),
        ("queue", each.queue),
        ("latency_per_output_token", each.per_token),
        ("max_waiting_time", each.max_waiting),
        ("send_delay", delay),
    ):
        summary |= latency_figures(name, values)
    summary["preemptions"] = int(records.preemptions.sum(dtype=np.int64))
    summary["overtakes"] = int(records.overtaken.sum(dtype=np.int64))
    summary["max_overtaken"] = int(records.overtaken.max(initial=0))
    return summary


def _gaps(
    times: NDArray[np.float32], offsets: NDArray[np.int64], done: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], Floats]:
    """All gaps between pieces of the completed answers, and the longest gap of each answer."""
    counts = np.diff(offsets)
    starts = offsets[:-1][counts > 0]
    gaps = np.diff(times, prepend=np.float32(0))
    gaps[starts] = -np.inf  # what lies before an answer's first piece is no gap
    longest = np.full(len(counts), np.nan)
    if len(starts):
        longest[counts > 0] = np.maximum.reduceat(gaps, starts)
    longest[np.isneginf(longest)] = np.nan
    return gaps[np.repeat(done, counts) & np.isfinite(gaps)], longest[done]


def _duration(records: Records) -> float:
    """From the first request that was sent to the last answer's end, in s; NaN if none was."""
    sent = records.sent_s[np.isfinite(records.sent_s)]
    finished = records.finish_s[np.isfinite(records.finish_s)]
    return float(finished.max() - sent.min()) if len(sent) and len(finished) else math.nan


def _peaks(records: Records, done: NDArray[np.bool_]) -> tuple[float, int]:
    """The most pieces that came, and the most requests that were open, within one second.

    Counted as vLLM does: in whole seconds from the first sending, a request counting in every
    second that it touches.
    """
    if not done.any():
        return 0.0, 0
    start = records.sent_s[done].min()
    counts = np.diff(records.token_offsets)
    arrived = records.token_times + np.repeat(records.sent_s, counts) - start
    seconds = arrived[np.repeat(done, counts)].astype(np.int64)
    first = (records.sent_s[done] - start).astype(np.int64)
    last = (records.finish_s[done] - start).astype(np.int64)
    change = np.bincount(first, minlength=last.max() + 2)
    change[1:] -= np.bincount(last, minlength=last.max() + 1)
    pieces = np.bincount(seconds) if len(seconds) else np.zeros(1)
    return float(pieces.max()), int(np.cumsum(change).max())
