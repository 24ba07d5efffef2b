"""What a policy would have made of requests that were served in the order of arrival.

`python -m lengthwise.advise.foregone` reads the facts of a window of served requests as JSON from
stdin and writes the estimate as JSON to stdout: a process of its own, so that an engine in shadow
mode is kept from nothing.

The estimate is a replay. Steps cost what those of the window are fitted to; the same requests
arrive at the same times at an engine that is empty, have the same lengths and predictions, and are
served twice by the simulator, under fcfs and under the policy. How far the replay of fcfs is from
what was measured is told with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.calibrate import fit_steps, timed_steps, timed_work
from lengthwise.errors import InputError, LengthwiseError, one_line
from lengthwise.measure.metrics import latency_figures
from lengthwise.policy.discipline import make_discipline
from lengthwise.request import PREDICTION
from lengthwise.simulate.engine import WORK, EngineSettings, StepCost
from lengthwise.simulate.simulation import Simulation, simulate
from lengthwise.workload.trace import Trace
from lengthwise.workload.trace_rows import offsets_of

FEWEST: Final = 64  #: requests of a window that anything is said of

_FIGURES: Final = ("mean_e2el_ms", "p99_e2el_ms", "mean_ttft_ms", "p99_ttft_ms")
_SAME_S: Final = 1e-9  # a first step this near is at the same time


@dataclass(frozen=True)
class Window:
    """Requests that an engine has served, and the steps that it took.

    Attributes:
        discipline: arguments of `make_discipline` for the policy that did not decide.
        engine: the engine's limits.
        classes_decide: vLLM's own order goes by priority class.
        policy_sees_classes: the policy's does.
        requests: columns of n requests: `arrival_s`, `finish_s`, `prompt_tokens`,
            `output_tokens`, `priority`, `tenant`, `predictions` (five numbers, NaN without one) and
            `blocks`, the numbers of the prompt's full blocks.
        steps: columns of the steps: `duration_s` (NaN where the engine idled) and WORK.
    """

    discipline: Mapping[str, Any]
    engine: EngineSettings
    classes_decide: bool
    policy_sees_classes: bool
    requests: Mapping[str, list[Any]]
    steps: Mapping[str, list[float]] = field(default_factory=dict)


def foretell_gain(window: Window, cost: StepCost | None = None) -> dict[str, Any]:
    """Replay a window under fcfs and under the policy.

    Args:
        window: what was served.
        cost: of a step; None for what fits the window's steps.

    Returns:
        `gain_mean`, `gain_ttft` and `gain_p99`: fcfs over policy of the mean time to the last and
        to the first token and of the 99th percentile of the former; for both orders those times in
        ms; `moved`, the share of requests that would have begun at another time; `overtakes` and
        `preemptions` of the policy; `as_served_e2el_ms`, what was measured; `replay_error`, by how
        much the replay of fcfs exceeds that, relative to it; `requests`, how many there are.

    Raises:
        InputError: there are too few requests or steps.
    """
    kept = _from_an_empty_engine(window.requests)
    if len(kept) < FEWEST:
        raise InputError(f"{len(kept)} requests were seen, {FEWEST} are needed")
    rows = {name: [column[place] for place in kept] for name, column in window.requests.items()}
    trace = _trace(rows, window.engine)
    cost = cost or _fitted(window)
    classes = np.array(rows["priority"], np.int64)
    predictions = np.array(
        [[np.nan] * len(PREDICTION) if row is None else row for row in rows["predictions"]]
    )

    def replay(arguments: Mapping[str, Any], sees_classes: bool) -> Simulation:
        return simulate(
            trace,
            make_discipline(**arguments),
            cost,
            window.engine,
            predictions=predictions,
            priority=classes if sees_classes else None,
            tenant=np.array(rows["tenant"], np.int64),
        )

    fcfs = replay({"policy": "fcfs"}, window.classes_decide)
    policy = replay(window.discipline, window.policy_sees_classes)
    served = np.array(rows["finish_s"]) - np.array(rows["arrival_s"])
    before, after = _times(fcfs), _times(policy)
    moved = np.abs(fcfs.requests["scheduled_s"] - policy.requests["scheduled_s"]) > _SAME_S
    mean_s = float(served.mean())
    return {
        "requests": len(kept),
        "gain_mean": before["mean_e2el_ms"] / after["mean_e2el_ms"],
        "gain_ttft": before["mean_ttft_ms"] / after["mean_ttft_ms"],
        "gain_p99": before["p99_e2el_ms"] / after["p99_e2el_ms"],
        "fcfs": before,
        "policy": after,
        "moved": float(moved.mean()),
        "overtakes": int(policy.requests["overtaken"].sum()),
        "preemptions": int(policy.requests["preemptions"].sum()),
        "as_served_e2el_ms": 1e3 * mean_s,
        "replay_error": float(fcfs.e2el_s.mean()) / mean_s - 1.0,
    }


def _from_an_empty_engine(requests: Mapping[str, list[Any]]) -> NDArray[np.int64]:
    """The requests in order of arrival, from one on that found the engine empty.

    Where none of the first half did, all: the replay then begins with less work than there was.
    """
    arrival_s = np.array(requests["arrival_s"], np.float64)
    order = np.argsort(arrival_s, kind="stable")
    if len(order) == 0:
        return order
    finish_s = np.maximum.accumulate(np.array(requests["finish_s"], np.float64)[order])
    starts = np.flatnonzero(arrival_s[order][1:] >= finish_s[:-1]) + 1
    first = int(starts[0]) if len(starts) and starts[0] <= len(order) // 2 else 0
    return order[first:]


def _trace(rows: Mapping[str, list[Any]], engine: EngineSettings) -> Trace:
    arrival_s = np.array(rows["arrival_s"], np.float64)
    blocks = rows["blocks"]
    names = np.array([name for row in blocks for name in row], np.uint64)
    _, numbers = np.unique(names, return_inverse=True)
    return Trace(
        name="as served",
        arrival_s=arrival_s - arrival_s[0],
        prompt_tokens=np.array(rows["prompt_tokens"], np.int64),
        output_tokens=np.array(rows["output_tokens"], np.int64),
        rejected=[],
        layout="synthetic",
        block_hashes=numbers.astype(np.int64),
        block_offsets=offsets_of(np.array([len(row) for row in blocks])),
        hash_tokens=engine.block_size,
    )


def _fitted(window: Window) -> StepCost:
    seconds = np.array(window.steps["duration_s"], np.float64)
    work = np.stack([np.array(window.steps[name], np.float64) for name in WORK], axis=1)
    timed = timed_steps(seconds, window.engine.lag) & (seconds > 0.0)
    return fit_steps(timed_work(work, window.engine.lag)[timed], seconds[timed])


def _times(simulation: Simulation) -> dict[str, float]:
    """Times to the last and to the first token, in ms."""
    all_figures = latency_figures("e2el", simulation.e2el_s)
    all_figures |= latency_figures("ttft", simulation.ttft_s)
    return {name: all_figures[name] for name in _FIGURES}


def main() -> None:
    """Read a window, write the estimate, or why there is none."""
    given = json.load(sys.stdin)
    try:
        engine = EngineSettings(**given.pop("engine"))
        said: dict[str, Any] = foretell_gain(Window(engine=engine, **given))
    except LengthwiseError as error:
        said = {"error": one_line(error)}
    json.dump(said, sys.stdout)


if __name__ == "__main__":
    main()
