"""Policies against a baseline, within one run.

A machine's speed drifts over minutes, so a policy's round is compared only with the baseline's
round of the same load and repeat: the same requests, the same arrivals, close in time. A ratio is
baseline / policy, above 1 where the policy is better, and is given as the median over the repeats
with the smallest and the largest. Nothing is left out for being flagged; flags are shown. In
virtual time nothing drifts, and a repeat is another draw of requests and arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from lengthwise.measure.metrics import Summary, summarise
from lengthwise.measure.results import LIVE, VIRTUAL, Results, RoundInfo

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
_COUNTS = (
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "preemptions",
    "recomputed_tokens",
    "overtakes",
)

CAPACITY_TOLERANCE = 0.10  # share of the run's median capacity beyond which a round is flagged
LOAD_TOLERANCE = 0.10  # share of the load asked for beyond which the load offered is flagged
LEAST_GAIN = 0.01  # share of the mean E2EL that an oracle must gain for a share of it to say much
SEND_TOLERANCE = 0.05  # share of the mean E2EL beyond which the client's own delay is flagged


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
        # In virtual time capacity is that of another draw of requests, and no machine drifted.
        drifts = None if results.run.engine == VIRTUAL else capacity
        rounds.append(RoundResult(each.info, summary, _flags(each.info, summary, drifts)))
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
