"""Latencies and rounds in figures, and policies against a baseline within one run.

Definitions and JSON keys are those of `vllm bench serve`. Taken over from vLLM
(vllm/benchmarks/serve.py, `calculate_metrics`): TTFT from sending to the first token; TPOT =
(latency − TTFT) / (output tokens − 1), answers of one token left out; ITL the gaps between the
pieces of an answer; E2EL from sending to the last token; failed requests count as failed and
nowhere else. Where no request qualifies the figure is NaN, not 0 as in vLLM.

Two more come from Fu et al., Efficient LLM Scheduling by Learning to Rank (arXiv 2408.15792):
latency per output token = E2EL / output tokens, and a request's max_waiting_time = the longer of
its TTFT and its longest gap between pieces.

A machine's speed drifts over minutes, so a policy's round is compared only with the baseline's
round of the same load and repeat: the same requests, the same arrivals, close in time. A ratio is
baseline / policy, above 1 where the policy is better, and is given as the median over the repeats
with the smallest and the largest. Nothing is left out for being flagged; flags are shown. In
virtual time nothing drifts, and a repeat is another draw of requests and arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.measure.results import LIVE, Records, Results, RoundInfo

Floats = NDArray[np.float64]
Summary = dict[str, float | int | None]
PERCENTILES: Final = (50, 90, 95, 99)

#: Figures that are compared with the baseline; for all of them smaller is better.
COMPARED = (
    "mean_e2el_ms",
    "median_e2el_ms",
    "p95_e2el_ms",
    "p99_e2el_ms",
    "max_e2el_ms",
    "mean_ttft_ms",
    "p99_ttft_ms",
    "mean_latency_per_output_token_ms",
    "p90_latency_per_output_token_ms",
    "max_waiting_time_ms",
)
_COUNTS = ("completed", "failed", "preemptions", "recomputed_tokens", "overtakes")

CAPACITY_TOLERANCE = 0.10  # share of the run's median capacity beyond which a round is flagged
LOAD_TOLERANCE = 0.10  # share of the load asked for beyond which the load offered is flagged
LEAST_GAIN = 0.01  # share of the mean E2EL that an oracle must gain for a share of it to say much
SEND_TOLERANCE = 0.05  # share of the mean E2EL beyond which the client's own delay is flagged


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


@dataclass(frozen=True)
class Spread:
    """A figure over several rounds."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        """The spread of the finite values; None where there is none."""
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            return None
        return cls(float(np.median(finite)), min(finite), max(finite))


@dataclass(frozen=True)
class RoundResult:
    """A round in figures."""

    info: RoundInfo
    summary: Summary
    flags: list[str]  # the bench's own and those found in comparison

    def figure(self, name: str) -> float:
        """One figure of the summary; NaN where it is undefined."""
        value = self.summary[name]
        return math.nan if value is None else float(value)


@dataclass(frozen=True)
class PolicyResult:
    """A policy at one load, over its rounds."""

    policy: str
    load: str
    rounds: list[RoundResult]
    ratios: dict[str, Spread]  # by figure, baseline / policy; empty without a baseline
    gap_closed: Spread | None  # (baseline − policy) / (baseline − oracle) on mean E2EL

    @property
    def flagged(self) -> int:
        """How many of its rounds carry a flag."""
        return sum(bool(each.flags) for each in self.rounds)

    def spread(self, name: str) -> Spread | None:
        """A figure over the rounds; None where no round has it."""
        return Spread.of(each.figure(name) for each in self.rounds)

    def summary(self) -> Summary:
        """All figures: counts summed over the rounds, anything else the median of the rounds."""
        figures: Summary = {}
        for name in self.rounds[0].summary:
            if name in _COUNTS:
                total = sum(each.figure(name) for each in self.rounds)
                figures[name] = int(total) if math.isfinite(total) else None
            else:
                spread = self.spread(name)
                if spread is None:
                    figures[name] = None
                elif isinstance(self.rounds[0].summary[name], int):
                    figures[name] = round(spread.median)
                else:
                    figures[name] = spread.median
        return figures


@dataclass(frozen=True)
class Comparison:
    """A whole run: one result for each load and policy, in the order in which they first ran.

    Loads that depend on the clock come last.
    """

    results: list[PolicyResult]
    baseline: str | None  # label of the policy that the others are compared with
    oracle: str | None  # label of the policy that knows the true lengths
    capacity: Spread | None  # tokens per second over all rounds
    engine: str = LIVE  # which kind all rounds ran on, see `RunInfo`
    engine_note: str = ""

    @property
    def rounds(self) -> list[RoundResult]:
        """All rounds in the order in which they ran."""
        found = [each for result in self.results for each in result.rounds]
        return sorted(found, key=lambda each: each.info.round)

    def by_load(self) -> list[tuple[str, list[PolicyResult]]]:
        """The results of each load."""
        return [
            (load, list(results))
            for load, results in groupby(self.results, key=lambda result: result.load)
        ]


def compare(results: Results, objectives: dict[str, float] | None = None) -> Comparison:
    """Compare the policies of a run.

    Args:
        results: the run; its baseline is the policy `fcfs`, its oracle the policy `oracle`, or
            `trail+` where that is the only one that knows the lengths.
        objectives: see `parse_objectives`.
    """
    infos = [each.info for each in results.rounds]
    labels = list(dict.fromkeys(info.policy for info in infos))
    baseline = _named("fcfs", labels)
    oracle = _named("oracle", labels) or _named("trail+", labels)
    capacity = Spread.of(
        math.nan if info.capacity_tokens_per_s is None else info.capacity_tokens_per_s
        for info in infos
    )
    rounds = []
    for each in results.rounds:
        summary = summarise(each.records, objectives)
        summary["recomputed_tokens"] = each.info.counters.get("recomputed_tokens")
        rounds.append(RoundResult(each.info, summary, _flags(each.info, summary, capacity)))
    # What needs no clock carries the comparison, so it comes first.
    loads = sorted(dict.fromkeys(info.load for info in infos), key=depends_on_clock)
    compared = []
    for load in loads:
        by_policy = {
            label: [each for each in rounds if (each.info.load, each.info.policy) == (load, label)]
            for label in labels
        }
        for label, own in by_policy.items():
            if own:
                ratios = _ratios(own, by_policy.get(baseline or "", []))
                gap = _gap_closed(
                    own, by_policy.get(baseline or "", []), by_policy.get(oracle or "", [])
                )
                compared.append(PolicyResult(label, load, own, ratios, gap))
    run = results.run
    return Comparison(compared, baseline, oracle, capacity, run.engine, run.engine_note)


def base_name(policy: str) -> str:
    """The policy's name in a label such as `srpt:max_overtakes=50`."""
    return policy.partition(":")[0]


def knows_lengths(policy: str) -> bool:
    """Whether the policy of a label is told the true lengths: a bound, and no choice."""
    name = base_name(policy)
    return name.startswith("oracle") or name == "trail+"


def depends_on_clock(load: str) -> bool:
    """Whether requests arrive by the clock, so that a slower machine is under more load."""
    return load_number(load) is not None or load.startswith(("rate=", "trace="))


def load_number(load: str) -> float | None:
    """A load that is a multiple of capacity as a number; None for all other kinds."""
    try:
        return float(load)
    except ValueError:
        return None


def _named(name: str, labels: list[str]) -> str | None:
    """The policy's plain label where it ran, else its first variant, else None."""
    variants = [label for label in labels if base_name(label) == name]
    return name if name in variants else next(iter(variants), None)


def _pairs(
    own: list[RoundResult], other: list[RoundResult]
) -> list[tuple[RoundResult, RoundResult]]:
    """The rounds of two policies at one load that had the same repeat."""
    by_repeat = {each.info.repeat: each for each in other}
    return [(each, by_repeat[each.info.repeat]) for each in own if each.info.repeat in by_repeat]


def _ratios(own: list[RoundResult], baseline: list[RoundResult]) -> dict[str, Spread]:
    ratios = {}
    for name in COMPARED:
        values = []
        for each, other in _pairs(own, baseline):
            figure = each.figure(name)
            values.append(other.figure(name) / figure if figure > 0 else math.nan)
        spread = Spread.of(values)
        if spread is not None:
            ratios[name] = spread
    return ratios


def _gap_closed(
    own: list[RoundResult], baseline: list[RoundResult], oracle: list[RoundResult]
) -> Spread | None:
    """Undefined (None) where no oracle ran, or where it gained next to nothing."""
    oracles = {each.info.repeat: each for each in oracle}
    values = []
    for each, other in _pairs(own, baseline):
        best = oracles.get(each.info.repeat)
        if best is None:
            continue
        before = other.figure("mean_e2el_ms")
        gap = before - best.figure("mean_e2el_ms")
        told = gap > LEAST_GAIN * before
        values.append((before - each.figure("mean_e2el_ms")) / gap if told else math.nan)
    return Spread.of(values)


def _flags(info: RoundInfo, summary: Summary, capacity: Spread | None) -> list[str]:
    """What a reader must know before trusting a round."""
    flags = list(info.flags)
    if summary["failed"]:
        flags.append(f"failed requests, in no latency: {summary['failed']}")
    if info.capacity_tokens_per_s is not None and capacity is not None:
        change = info.capacity_tokens_per_s / capacity.median - 1
        if abs(change) > CAPACITY_TOLERANCE:
            flags.append(f"capacity {change:+.0%} against the run's median")
    asked = load_number(info.load)
    if (
        asked is not None
        and info.offered_load is not None
        and abs(info.offered_load / asked - 1) > LOAD_TOLERANCE
    ):
        flags.append(f"load {asked:g} was asked for, {info.offered_load:.2f} was offered")
    delay, latency = summary["p99_send_delay_ms"], summary["mean_e2el_ms"]
    if delay is not None and latency is not None and delay > SEND_TOLERANCE * latency:
        flags.append(f"the client sent late: p99 {delay:.0f} ms")
    return flags
