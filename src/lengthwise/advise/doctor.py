"""Whether traffic queues enough for its order to matter, what that is worth, and what limits it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.calibrate import fit_cost
from lengthwise.advise.cell import Cell, Figures, Workload
from lengthwise.advise.measured import MeasuredRound
from lengthwise.advise.objectives import times_fcfs
from lengthwise.advise.signs import Signs
from lengthwise.advise.sweep import run_sweep
from lengthwise.errors import LengthwiseError
from lengthwise.measure.request_record import Records
from lengthwise.measure.run_info import RoundInfo
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost

Floats = NDArray[np.float64]

PREDICTORS: Final = ("noisy-oracle:0.3", "noisy-oracle:0.5", "noisy-oracle:0.7", "oracle")
USUAL: Final = "noisy-oracle:0.5"  #: about what the built-in predictor reaches on chat

#: What is compared, by the names of `objectives.LATENCIES`.
COMPARED: Final = (
    "mean-e2el",
    "p50-e2el",
    "mean-latency-per-output-token",
    "mean-ttft",
    "p99-e2el",
)

_ALIKE: Final = 0.3  # spread of lengths below which there is little to tell apart
_FEW: Final = 500  # requests, below which a mean is mostly chance
_OFTEN: Final = 0.25  # of the time with a queue: a limit that holds so often is named
_WORTH: Final = 1.05  # times sooner: less is not worth a change


@dataclass(frozen=True)
class Prospect:
    """What a predictor would bring.

    Attributes:
        predictor: which.
        times_fcfs: by the names of COMPARED, multiples of fcfs's, shape [seeds].
    """

    predictor: str
    times_fcfs: Mapping[str, Floats]

    def gains(self, metric: str) -> Floats:
        """How many times lower than under fcfs, shape [seeds]."""
        gains: Floats = 1.0 / self.times_fcfs[metric]
        return gains


def cost_of_steps(steps: Mapping[str, Floats], engine: EngineSettings) -> StepCost:
    """Step costs fitted to a log's own steps.

    Raises:
        InputError: there are too few, or they are all alike.
    """
    unseen = MeasuredRound(
        info=RoundInfo(round=0, policy="", load="", repeat=0),
        records=Records.from_rows([]),
        steps=steps,
        engine=engine,
        discipline=make_discipline("fcfs"),
        predictions=np.empty((0, 5)),
        arrival_s=np.empty(0),
    )
    cost = fit_cost([unseen]).cost
    return replace(cost, source=f"fitted to {int(unseen.timed.sum()):,} steps of the log")


def prospects(
    workload: Workload,
    base: Cell,
    discipline: dict[str, Any],
    seeds: Sequence[int],
    *,
    jobs: int | None = None,
    done: Callable[[int], None] = lambda finished: None,
) -> tuple[Figures, list[Prospect]]:
    """Simulate the workload under fcfs, and under a discipline with each of PREDICTORS.

    Args:
        workload: the requests.
        base: engine, costs and load.
        discipline: arguments of `make_discipline`.
        seeds: of the predictors' noise; the oracle has none.
        jobs: processes at once; None for one a core.
        done: told how many simulations are behind.

    Returns:
        The figures of fcfs, and a prospect for each predictor.

    Raises:
        LengthwiseError: a simulation failed.
    """
    asked = [
        (name, seed) for name in PREDICTORS for seed in (seeds[:1] if name == "oracle" else seeds)
    ]
    cells = [replace(base, label="fcfs", discipline={"policy": "fcfs"})]
    cells += [
        replace(base, label=name, discipline=discipline, predictor=name, seed=seed)
        for name, seed in asked
    ]
    fcfs, *rows = run_sweep(cells, workload, jobs=jobs, done=done)
    for row in (fcfs, *rows):
        if "error" in row:
            raise LengthwiseError(f"{row['policy']} could not be simulated: {row['error']}")
    found = []
    for name in PREDICTORS:
        own = [row for row, (of, _) in zip(rows, asked, strict=True) if of == name]
        times = {
            metric: np.array([times_fcfs(metric, row, fcfs) for row in own]) for metric in COMPARED
        }
        found.append(Prospect(name, times))
    return fcfs, found


def verdict(signs: Signs, simulated: Sequence[Prospect]) -> list[str]:
    """The diagnosis, one line each: whether there is a queue, and what its order is worth."""
    lines = [_queue_line(signs)]
    usual = next((each for each in simulated if each.predictor == USUAL), None)
    if usual is None:
        return lines
    mean, token = usual.gains("mean-e2el"), usual.gains("mean-latency-per-output-token")
    worth = "Worth it" if max(mean.mean(), token.mean()) >= _WORTH else "Not worth it"
    lines.append(
        f"{worth}: with predictions of tau 0.5, shortest first would answer {mean.mean():.2f}× "
        f"sooner on average, {token.mean():.2f}× counted by output token, and the 99th percentile "
        f"would be {usual.times_fcfs['p99-e2el'].mean():.2f}× that of fcfs."
    )
    return lines


def limiting(signs: Signs) -> list[str]:
    """What limits the gain or the server, one line each."""
    found = []
    if not signs.queues:
        found.append("No queue: as long as requests hardly wait, no order can help.")
    elif (signs.slots_taken or 0.0) >= _OFTEN:
        found.append(
            f"Slots: in {signs.slots_taken:.0%} of the time with a queue all {signs.slots} are "
            "taken; with KV memory to spare, more of them (--max-num-seqs) shorten the queue."
        )
    if (signs.memory_scarce or 0.0) >= _OFTEN or (signs.memory_preemptions or 0) > 0:
        share = "" if signs.kv_use is None else f": up to {signs.kv_use:.0%} of its blocks in use"
        preempted = signs.memory_preemptions
        again = f"; {preempted:,} preemptions for want of blocks" if preempted else ""
        found.append(
            f"KV memory{share}{again}. What a preempted request had computed may be lost, and "
            "slots stay empty."
        )
    if signs.load is not None and signs.load >= 1.0:
        found.append(
            f"Load {signs.load:.2f}: more is asked than the engine can do, so the queue grows as "
            "long as requests come; order then decides who waits, not whether."
        )
    if signs.spread is not None and signs.spread < _ALIKE:
        found.append(
            f"Few distinct lengths: their standard deviation is {signs.spread:.0%} of the mean, so "
            "there is little to put first."
        )
    if signs.requests < _FEW:
        found.append(
            f"Too few requests: {signs.requests:,}; figures settle from some {_FEW} on, of the "
            "hours that matter."
        )
    return found


def _queue_line(signs: Signs) -> str:
    parts = []
    if signs.waiting_share is not None:
        parts.append(f"someone waits {signs.waiting_share:.0%} of the time")
    if signs.mean_queue_s is not None and signs.queue_share is not None:
        parts.append(
            f"of the {signs.mean_latency_s:.3g} s that a request takes, {signs.mean_queue_s:.3g} s "
            f"({signs.queue_share:.0%}) are spent in the queue"
        )
    elif signs.mean_queue_s is not None:
        parts.append(f"a request is {signs.mean_queue_s:.3g} s in the queue")
    said = "; ".join(parts) or "neither waiting times nor steps were recorded"
    return f"{'It queues' if signs.queues else 'It hardly queues'}: {said}."
