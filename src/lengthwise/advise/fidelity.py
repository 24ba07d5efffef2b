"""Simulate what was measured, and say how near it comes.

Every request of a round is simulated at the time at which it was really sent, with the lengths and
the prediction that it really had, under the round's own policy and the engine's own limits. The
costs are those fitted to other rounds. A machine's speed drifts, so that each round is simulated
thrice: at the speed of the costs, at its own mean speed, and at its own speed every second.
The first says what a forecast is worth; the last, what of the error is the simulator's and not the
machine's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from lengthwise.advise.calibrate import (
    Clock,
    Fit,
    Floats,
    MeasuredRound,
    drifting,
    fit_cost,
    slowness,
    steady,
)
from lengthwise.measure.metrics import request_metrics
from lengthwise.simulate.engine import StepCost
from lengthwise.simulate.simulation import simulate
from lengthwise.workload.trace import Trace

STRETCH_S: Final = 1.0

#: What is known of a round's speed, and what it is called.
SPEEDS: Final = {
    "fitted": "nothing of the round itself was used",
    "round": "the round's mean speed was used: one number",
    "second": "the round's speed in every second was used",
}
METRICS: Final = ("e2el", "ttft", "tpot")


@dataclass(frozen=True)
class Compared:
    """A round at one speed. Latencies in s, shape [completed requests]; TPOT may be NaN.

    Attributes:
        measured: the round.
        speed: one of SPEEDS.
        fitted_to: the numbers of the rounds that the costs come from.
        slowness: how many times longer its steps took than those costs say.
        observed: by metric.
        simulated: by metric.
        preemptions: simulated.
    """

    measured: MeasuredRound
    speed: str
    fitted_to: tuple[int, ...]
    slowness: float
    observed: dict[str, Floats]
    simulated: dict[str, Floats]
    preemptions: int


def compare(
    rounds: Sequence[MeasuredRound],
    fitted: Sequence[MeasuredRound],
    progress: Callable[[int], None] = lambda done: None,
) -> list[Compared]:
    """Simulate every round at every speed.

    Args:
        rounds: what is compared.
        fitted: what costs are fitted to, without the rounds of the compared round's own repeat.
            Where they are all of one repeat only the round itself is left out, and a single round
            is not.
        progress: called with the number of rounds that are done.

    Raises:
        InputError: too little was recorded to fit costs.
    """
    fits: dict[tuple[int, ...], Fit] = {}
    compared: list[Compared] = []
    for done, each in enumerate(rounds):
        others = _others(each, fitted)
        key = tuple(other.info.round for other in others)
        if key not in fits:
            fits[key] = fit_cost(others)
        cost = fits[key].cost
        factor = slowness(each, cost)
        clocks = {
            "fitted": steady(),
            "round": steady(factor),
            "second": drifting(each, cost, STRETCH_S),
        }
        for speed, clock in clocks.items():
            observed, simulated, preemptions = _simulated(each, cost, clock)
            compared.append(Compared(each, speed, key, factor, observed, simulated, preemptions))
        progress(done + 1)
    return compared


def _others(measured: MeasuredRound, fitted: Sequence[MeasuredRound]) -> Sequence[MeasuredRound]:
    """What the costs for a round are fitted to, see `compare`."""
    if not any(each is measured for each in fitted):
        return fitted
    elsewhere = [each for each in fitted if each.info.repeat != measured.info.repeat]
    return elsewhere or [each for each in fitted if each is not measured] or fitted


def _simulated(
    measured: MeasuredRound, cost: StepCost, clock: Clock
) -> tuple[dict[str, Floats], dict[str, Floats], int]:
    """Latencies of the completed requests, measured and simulated, and how many preemptions."""
    records = measured.records
    done = np.flatnonzero(records.completed)
    order = done[np.argsort(records.sent_s[done], kind="stable")]
    sent_s = records.sent_s[order]
    trace = Trace(
        name=measured.name,
        arrival_s=clock.work_at(sent_s),
        prompt_tokens=records.prompt_tokens[order].astype(np.int64),
        output_tokens=records.output_tokens[order].astype(np.int64),
        rejected=[],
        layout="records",
    )
    simulation = simulate(
        trace,
        measured.discipline,
        cost,
        measured.engine,
        predictions=measured.predictions[order],
    )
    requests, tokens = simulation.requests, trace.output_tokens
    first_s = clock.wall_at(requests["first_token_s"]) - sent_s
    last_s = clock.wall_at(requests["finish_s"]) - sent_s
    simulated = {
        "e2el": last_s + cost.delay_s,
        "ttft": first_s + cost.delay_s,
        "tpot": np.where(tokens > 1, (last_s - first_s) / np.maximum(tokens - 1, 1), np.nan),
    }
    seen = request_metrics(records)
    place = np.searchsorted(done, order)
    observed = {name: getattr(seen, name)[place] for name in METRICS}
    preemptions = requests["preemptions"].sum() + requests["memory_preemptions"].sum()
    return observed, simulated, int(preemptions)


def agreement(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Per speed, load and policy, over all requests of all repeats: how near the simulation is.

    For each of METRICS a mapping with the means and 99 % quantiles of both in s, the relative
    errors `mean_error`, `p50_error` and `p99_error` (simulated / measured − 1), and over the single
    requests `mape` (the mean of the absolute relative errors) and `pearson`. Where fcfs was
    measured at that load too, `over_fcfs` has mean and p99 as ratios to its, with their errors.
    What is undefined is NaN.
    """
    groups: dict[tuple[str, str, str], list[Compared]] = {}
    for each in compared:
        info = each.measured.info
        groups.setdefault((each.speed, info.load, info.policy), []).append(each)
    pooled = {key: _Pooled.of(parts) for key, parts in groups.items()}
    rows = []
    for (speed, load, policy), values in sorted(
        pooled.items(), key=lambda item: list(SPEEDS).index(item[0][0])
    ):
        row: dict[str, Any] = {
            "speed": speed,
            "load": load,
            "policy": policy,
            "rounds": values.rounds,
            "requests": len(values.observed["e2el"]),
            "preemptions_measured": values.preemptions[0],
            "preemptions_simulated": values.preemptions[1],
            **{name: values.errors(name) for name in METRICS},
        }
        fcfs = pooled.get((speed, load, "fcfs"))
        if fcfs is not None and policy != "fcfs":
            row["over_fcfs"] = {name: values.ratios(fcfs, name) for name in METRICS}
        rows.append(row)
    return rows


def by_round(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Each round: what its costs were fitted to, how slow it was, and its errors at every speed."""
    rounds: dict[int, list[Compared]] = {}
    for each in compared:
        rounds.setdefault(id(each.measured), []).append(each)
    return [
        {
            "round": parts[0].measured.info.round,
            "policy": parts[0].measured.info.policy,
            "load": parts[0].measured.info.load,
            "repeat": parts[0].measured.info.repeat,
            "fitted_to": list(parts[0].fitted_to),
            "slowness": parts[0].slowness,
            "mean_error": {
                part.speed: {
                    name: _Pooled.of([part]).errors(name)["mean_error"] for name in METRICS
                }
                for part in parts
            },
        }
        for parts in rounds.values()
    ]


@dataclass(frozen=True)
class _Pooled:
    """The requests of several rounds."""

    rounds: list[int]
    observed: dict[str, Floats]
    simulated: dict[str, Floats]
    preemptions: tuple[int, int]

    @classmethod
    def of(cls, parts: Sequence[Compared]) -> _Pooled:
        return cls(
            rounds=[part.measured.info.round for part in parts],
            observed={m: np.concatenate([part.observed[m] for part in parts]) for m in METRICS},
            simulated={m: np.concatenate([part.simulated[m] for part in parts]) for m in METRICS},
            preemptions=(
                sum(int(part.measured.records.preemptions.sum()) for part in parts),
                sum(part.preemptions for part in parts),
            ),
        )

    def figures(self, metric: str) -> dict[str, tuple[float, float]]:
        """Mean, median and p99 in s, measured and simulated; NaN without requests."""
        both = []
        for values in (self.observed[metric], self.simulated[metric]):
            finite = values[np.isfinite(values)]
            both.append(finite if len(finite) else np.array([np.nan]))
        return {
            "mean": (float(both[0].mean()), float(both[1].mean())),
            "p50": (float(np.median(both[0])), float(np.median(both[1]))),
            "p99": (float(np.percentile(both[0], 99)), float(np.percentile(both[1], 99))),
        }

    def errors(self, metric: str) -> dict[str, float]:
        """See `agreement`."""
        figures = self.figures(metric)
        observed, simulated = self.observed[metric], self.simulated[metric]
        known = np.isfinite(observed) & np.isfinite(simulated) & (observed > 0)
        observed, simulated = observed[known], simulated[known]
        varied = len(observed) > 1 and np.ptp(observed) > 0 and np.ptp(simulated) > 0
        return {
            "measured_mean_s": figures["mean"][0],
            "simulated_mean_s": figures["mean"][1],
            "measured_p99_s": figures["p99"][0],
            "simulated_p99_s": figures["p99"][1],
            **{f"{name}_error": _error(*pair) for name, pair in figures.items()},
            "mape": float(np.mean(np.abs(simulated / observed - 1.0))) if len(observed) else np.nan,
            "pearson": float(np.corrcoef(observed, simulated)[0, 1]) if varied else np.nan,
        }

    def ratios(self, fcfs: _Pooled, metric: str) -> dict[str, float]:
        """See `agreement`."""
        found: dict[str, float] = {}
        own, base = self.figures(metric), fcfs.figures(metric)
        for name in ("mean", "p99"):
            measured, simulated = (own[name][k] / base[name][k] for k in (0, 1))
            found |= {
                f"measured_{name}": measured,
                f"simulated_{name}": simulated,
                f"{name}_error": _error(measured, simulated),
            }
        return found


def _error(measured: float, simulated: float) -> float:
    return simulated / measured - 1.0 if measured > 0 else np.nan
