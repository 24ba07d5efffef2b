"""Whether traffic queues enough for its order to matter, what that is worth, and what limits it.

Signs are what a log or a server's counters show of its queue, and of what limits it. Prospects are
what predictors of several qualities would bring, by simulation. The diagnosis is made of both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.calibrate import MeasuredRound, fit_cost
from lengthwise.advise.sweep import Cell, Figures, Workload, run_sweep
from lengthwise.advise.tune import times_fcfs
from lengthwise.errors import LengthwiseError
from lengthwise.measure.results import Records, RoundInfo
from lengthwise.measure.server_metrics import ServerSample
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.workload.trace import Trace

Floats = NDArray[np.float64]

SCARCE: Final = 0.05  #: of the KV blocks: fewer free ones keep a prompt out
PREDICTORS: Final = ("noisy-oracle:0.3", "noisy-oracle:0.5", "noisy-oracle:0.7", "oracle")
USUAL: Final = "noisy-oracle:0.5"  #: about what the built-in predictor reaches on chat

#: What is compared, by the names of `tune.LATENCIES`.
COMPARED: Final = (
    "mean-e2el",
    "p50-e2el",
    "mean-latency-per-output-token",
    "mean-ttft",
    "p99-e2el",
)

_QUEUES: Final = 0.05  # of the mean latency spent queueing: less, and no order can help much
_ALIKE: Final = 0.3  # spread of lengths below which there is little to tell apart
_FEW: Final = 500  # requests, below which a mean is mostly chance
_OFTEN: Final = 0.25  # of the time with a queue: a limit that holds so often is named
_WORTH: Final = 1.05  # times sooner: less is not worth a change


@dataclass(frozen=True)
class Signs:
    """What a log or a server's counters show; None where they do not say.

    Attributes:
        requests: finished ones.
        slots: requests that can run at once.
        waiting_share: of the time, with at least one request waiting.
        mean_queue_s: from arrival to the first step.
        mean_latency_s: from arrival to the last token.
        spread: of the answers' lengths, standard deviation over mean.
        load: work offered over what the engine can do in the time; above 1 the queue grows.
        slots_taken: of the time with a queue, with all slots taken.
        memory_scarce: of the time with a queue, with slots left but hardly any KV block.
        kv_use: the largest share of KV blocks in use.
        memory_preemptions: requests put back because KV memory ran out.
        cached_share: of the prompts' tokens, found in the prefix cache.
    """

    requests: int
    slots: int | None = None
    waiting_share: float | None = None
    mean_queue_s: float | None = None
    mean_latency_s: float | None = None
    spread: float | None = None
    load: float | None = None
    slots_taken: float | None = None
    memory_scarce: float | None = None
    kv_use: float | None = None
    memory_preemptions: int | None = None
    cached_share: float | None = None

    @property
    def queue_share(self) -> float | None:
        """Of the mean latency, spent queueing."""
        if self.mean_queue_s is None or not self.mean_latency_s:
            return None
        return min(self.mean_queue_s / self.mean_latency_s, 1.0)

    @property
    def queues(self) -> bool:
        """Whether requests wait enough for their order to matter."""
        share = self.queue_share if self.queue_share is not None else self.waiting_share
        return share is not None and share >= _QUEUES


def signs_of_log(
    trace: Trace,
    queue_s: Floats,
    cached_tokens: Floats,
    steps: Mapping[str, Floats],
    engine: EngineSettings,
) -> Signs:
    """What the scheduler's record shows.

    The mean latency is by Little's law: requests in the system, on average over time, over the rate
    at which they finish. The record does not say when each one ended.

    Args:
        trace: the requests, but for those that ended before their first token.
        queue_s: of all of them, shape [n]; NaN for those that never ran.
        cached_tokens: of each one's prompt, shape [n]; NaN where it was not recorded.
        steps: columns of equal length as in `steps.jsonl`; empty without a record of steps.
        engine: its limits.
    """
    known = np.isfinite(cached_tokens)
    prompts = float(trace.prompt_tokens.mean()) * int(known.sum())
    signs = Signs(
        requests=len(trace),
        mean_queue_s=_mean(queue_s),
        spread=float(trace.output_tokens.std() / trace.output_tokens.mean()),
        cached_share=float(cached_tokens[known].sum()) / prompts if known.any() else None,
    )
    seconds = np.nan_to_num(steps["duration_s"])
    span = float(np.maximum(np.diff(steps["t"]), 0.0).sum())
    if len(seconds) == 0 or span == 0.0 or seconds.sum() == 0.0:
        return signs
    running, waiting, free = (steps[name] for name in ("running", "waiting", "free_blocks"))
    blocks = engine.kv_blocks or free.max()
    queued = (waiting > 0) * seconds
    full = running >= engine.slots
    scarce = ~full & (free < SCARCE * blocks)
    wait_s = float(queued.sum())
    return replace(
        signs,
        slots=engine.slots,
        waiting_share=min(wait_s / span, 1.0),
        mean_latency_s=float(((running + waiting) * seconds).sum()) / len(queue_s),
        slots_taken=float(queued[full].sum()) / wait_s if wait_s else None,
        memory_scarce=float(queued[scarce].sum()) / wait_s if wait_s else None,
        kv_use=float(1.0 - free.min() / blocks) if blocks else None,
    )


def signs_of_server(samples: Sequence[ServerSample]) -> Signs:
    """What a server's counters show: times since it started, the rest while it was watched."""
    last = samples[-1]
    waits = np.array([each.waiting > 0 for each in samples])
    kv_use = float(np.max([each.kv_use for each in samples]))
    return Signs(
        requests=int(last.answer_tokens.count or last.queue_s.count),
        waiting_share=float(waits.mean()),
        mean_queue_s=_finite(last.queue_s.mean),
        mean_latency_s=_finite(last.latency_s.mean),
        spread=_finite(last.answer_tokens.spread),
        kv_use=_finite(kv_use),
        memory_scarce=float(np.mean([each.kv_use > 1.0 - SCARCE for each in samples]))
        if np.isfinite(kv_use)
        else None,
        memory_preemptions=int(last.preemptions),
    )


def recorded_limits(steps: Mapping[str, Floats], limits: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's limits, as recorded, or the most that it was seen to do.

    Args:
        steps: columns as in `steps.jsonl`.
        limits: by the names of `EngineSettings`; empty in older records.
    """
    if limits or len(steps["running"]) == 0:
        return dict(limits)
    slots = max(int(np.nanmax(steps["running"])), 1)
    tokens = int(np.nanmax(steps["prefill_tokens"] + steps["decode_tokens"]))
    seen = {"slots": slots, "token_budget": max(EngineSettings.token_budget, slots, tokens)}
    free = steps["free_blocks"]
    return {**seen, "kv_blocks": int(np.nanmax(free))} if np.isfinite(free).any() else seen


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


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
