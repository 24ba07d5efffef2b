"""Simulate what was measured, and compare.

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
from typing import Final

import numpy as np

from lengthwise.advise.calibrate import Fit, fit_cost
from lengthwise.advise.clock import Clock, drifting, slowness, steady
from lengthwise.advise.measured import Floats, MeasuredRound
from lengthwise.measure.round_metrics import request_metrics
from lengthwise.simulate.simulation import simulate
from lengthwise.simulate.step_cost import StepCost
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
