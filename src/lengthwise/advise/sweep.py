"""Simulations as a sweep asks for them: one cell, and many, on all cores or on a cluster.

A cell is one simulation: what is asked, and what came out, in figures.

Each finished cell of a sweep is one line of a file, if there is one, so that a sweep that was
stopped goes on where it was. A worker that dies costs its cell one retry, and nothing else. What
came out of all can be drawn: latency over load.
"""

from __future__ import annotations

import hashlib
import json
import math
import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, LengthwiseError, missing_extra
from lengthwise.files import json_objects
from lengthwise.measure.metrics import good_requests, latency_figures
from lengthwise.measure.results import package_versions
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.replicas import PREDICTS
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.predictions import trace_predictions
from lengthwise.simulate.simulation import Simulation, simulate, warm_up
from lengthwise.workload.arrivals import burst, gamma
from lengthwise.workload.trace import Trace

Figures = dict[str, Any]
Done = Callable[[int], None]

PLACES: Final = ("cores", "ray")  #: where a sweep can run
_ATTEMPTS: Final = 2
_PROBE_STREAM: Final = 2  # of a seed; 1 is that of made-up lengths
_DRAWN: Final = (
    ("mean_e2el_ms", "Mean end-to-end latency (s)"),
    ("p99_e2el_ms", "p99 end-to-end latency (s)"),
    ("mean_ttft_ms", "Mean time to first token (s)"),
)


@dataclass(frozen=True)
class Cell:
    """One simulation.

    Attributes:
        label: the policy as the user wrote it.
        discipline: arguments of `make_discipline`.
        load: how requests arrive: a number, the share of what the engines can do; "burst"; "trace",
            as recorded; or "rate=R", requests a second.
        cv: coefficient of variation of random gaps; None keeps the trace's own pattern of arrivals
            and only stretches it.
        seed: for arrivals, predictions and the router.
        engine: limits of each engine.
        cost: of its steps.
        predictor: see `trace_predictions`; "given" for the predictions that come with the trace.
        probe: the same, as a probe says it of a prompt that has been computed; None without one.
        replicas: engines.
        router: see `simulate`, as are the next two.
        routers: in front of the engines.
        stale_s: how old what each knows of the others' requests may be.
        objectives: of service, see `parse_objectives`, for `request_goodput`.
        tags: what a sweep varied, repeated in the figures.
    """

    label: str
    discipline: dict[str, Any]
    load: str
    cost: StepCost
    engine: EngineSettings
    cv: float | None = None
    seed: int = 0
    predictor: str | None = None
    probe: str | None = None
    replicas: int = 1
    router: str = "least-outstanding"
    routers: int = 1
    stale_s: float = 0.0
    objectives: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, Any] = field(default_factory=dict)

    def key(self) -> Figures:
        """What tells the cell from others, as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Workload:
    """What all cells of a sweep serve.

    Attributes:
        trace: the requests.
        predictions: what a predictor says of them, where one has read their prompts.
    """

    trace: Trace
    predictions: NDArray[np.float64] | None = field(default=None)


def capacity(trace: Trace, cost: StepCost, engine: EngineSettings) -> float:
    """Requests of this kind that one engine can finish a second, with a full batch.

    The batch is full when its slots or its KV blocks are taken, whichever comes first.
    """
    batch = full_batch(trace, engine)
    return 1.0 / float(cost.service_s(trace.prompt_tokens, trace.output_tokens, batch).mean())


def full_batch(trace: Trace, engine: EngineSettings) -> int:
    """Requests that run at once when there are more than enough."""
    if engine.kv_blocks is None:
        return engine.slots
    # A request holds its prompt and, on average over its life, half of its answer; one is met in a
    # batch in proportion to the steps that it stays.
    weight = trace.output_tokens / max(float(trace.output_tokens.sum()), 1.0)
    held = float(((trace.prompt_tokens + 0.5 * trace.output_tokens) * weight).sum())
    room = engine.kv_blocks * (1.0 - engine.watermark) * engine.block_size
    return max(1, min(engine.slots, int(room / max(held, 1.0))))


def arrivals_of(cell: Cell, trace: Trace) -> Trace:
    """The trace with the cell's arrivals."""
    n = len(trace)
    if cell.load == "trace":
        return trace
    if cell.load == "burst":
        return trace.with_arrivals(burst(n))
    if cell.load.startswith("rate="):
        rate = float(cell.load.removeprefix("rate="))
    else:
        rate = float(cell.load) * cell.replicas * capacity(trace, cell.cost, cell.engine)
    if math.isfinite(trace.rate):  # also with random gaps: sessions' turns keep their own times
        trace = trace.scaled(rate / trace.rate)
        if cell.cv is None:
            return trace
    drawn = trace.with_arrivals(gamma(n, rate, 1.0 if cell.cv is None else cell.cv, cell.seed))
    # A few hundred random gaps miss their mean by several per cent, as much as the loads that are
    # compared differ: stretch them to the rate that was asked for.
    stretch = drawn.rate / rate if math.isfinite(drawn.rate) else 1.0
    return drawn.with_arrivals(drawn.arrival_s * stretch)


def offered_load(simulated: Simulation, trace: Trace, cell: Cell) -> float:
    """Work that really came over work that the engines can do in the time; inf for a burst.

    Later turns of sessions count when they came: the trace cannot know how long answers take.
    """
    came = trace.with_arrivals(np.sort(simulated.requests["arrival_s"]))
    return came.rate / (cell.replicas * capacity(trace, cell.cost, cell.engine))


def run_cell(cell: Cell, workload: Workload) -> Figures:
    """Simulate a cell.

    Raises:
        InputError: something asked for cannot be; see `simulate`.
    """
    trace = arrivals_of(cell, workload.trace)
    discipline = make_discipline(**cell.discipline)
    predictor = discipline.policy.predictor or cell.predictor
    predictions = None
    if discipline.needs_predictions or (cell.replicas > 1 and cell.router in PREDICTS):
        if predictor == "given":
            predictions = workload.predictions
        elif predictor is not None:
            predictions = trace_predictions(trace, predictor, cell.seed)
    probe = None
    if cell.probe is not None and discipline.refines:
        # Noise of its own: with the prompt predictor's it would err in the same requests.
        probe = trace_predictions(trace, cell.probe, [cell.seed, _PROBE_STREAM])
    simulated = simulate(
        trace,
        discipline,
        cell.cost,
        cell.engine,
        predictions=predictions,
        probe=probe,
        replicas=cell.replicas,
        router=cell.router,
        routers=cell.routers,
        stale_s=cell.stale_s,
        seed=cell.seed,
    )
    return {
        "policy": cell.label,
        "load": cell.load,
        "seed": cell.seed,
        "replicas": cell.replicas,
        "router": cell.router if cell.replicas > 1 else None,
        "predictor": predictor if predictions is not None else None,
        "offered_load": _finite(offered_load(simulated, trace, cell)),
        **cell.tags,
        **summary(simulated, cell.objectives),
    }


def summary(simulated: Simulation, objectives: Mapping[str, float] | None = None) -> Figures:
    """A simulation in figures: names and units as in `measure`, times in ms.

    A latency that no request has, as TPOT where every answer is one token, is left out.

    Args:
        simulated: what happened.
        objectives: of service, in ms; without any there is no `request_goodput`.
    """
    requests = simulated.requests
    ttft_s = simulated.ttft_s
    latencies = {
        "e2el": simulated.e2el_s,
        "ttft": ttft_s,
        "tpot": simulated.tpot_s,
        "queue": requests["scheduled_s"] - requests["arrival_s"],
        "latency_per_output_token": simulated.latency_per_output_token_s,
        "max_waiting_time": np.maximum(ttft_s, requests["longest_gap_s"]),
    }
    span = simulated.makespan_s
    figures: Figures = {
        "completed": int(np.isfinite(requests["finish_s"]).sum()),
        "duration": span,
        "request_throughput": _finite(len(requests) / span) if span > 0 else None,
        "output_throughput": _finite(simulated.output_tokens / span) if span > 0 else None,
        "steps": simulated.step_count,
        "preemptions": int(requests["preemptions"].sum()),
        "memory_preemptions": int(requests["memory_preemptions"].sum()),
        "pauses": int(requests["pauses"].sum()),
        "looks": int(requests["looks"].sum()),
        "recomputed_tokens": int(requests["recomputed_tokens"].sum()),
        "cached_tokens": int(requests["cached_tokens"].sum()),
        "max_overtaken": int(requests["overtaken"].max(initial=0)),
    }
    if objectives:
        good = good_requests(latencies, objectives)
        figures["request_goodput"] = _finite(good / span) if span > 0 else None
    for name, seconds in latencies.items():
        if np.isfinite(seconds).any():
            figures |= latency_figures(name, seconds)
    return figures


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def run_sweep(
    cells: Sequence[Cell],
    workload: Workload,
    *,
    jobs: int | None = None,
    on: str = "cores",
    results: Path | None = None,
    done: Done = lambda finished: None,
) -> list[Figures]:
    """Run all cells; the figures come in the order of the cells.

    A cell that failed has the keys policy, load, seed and `error`.

    Args:
        cells: what to simulate.
        workload: what all of them serve.
        jobs: processes at once; None for one a core.
        on: "cores", or "ray" for the Ray cluster that `ray.init()` finds.
        results: a file of JSON lines to add to, and to take finished cells from.
        done: called with the number of finished cells.

    Raises:
        InputError: a cell cannot be simulated at all; the message says why.
    """
    known = _read(results) if results is not None else {}
    identities = [_identity(cell, workload) for cell in cells]
    figures: list[Figures | None] = [known.get(identity) for identity in identities]
    todo = [index for index, row in enumerate(figures) if row is None]
    finished = len(cells) - len(todo)
    done(finished)
    jobs = max(1, min(jobs or os.cpu_count() or 1, len(todo)))
    if on == "ray":
        outcomes = _on_ray(cells, workload, todo)
    elif jobs == 1:
        outcomes = ((index, run_cell(cells[index], workload)) for index in todo)
    else:
        outcomes = _on_cores(cells, workload, todo, jobs)
    for index, row in outcomes:
        figures[index] = row
        finished += 1
        done(finished)
        if results is not None and "error" not in row:
            _append(results, identities[index], row)
    return [row for row in figures if row is not None]


def _on_cores(
    cells: Sequence[Cell], workload: Workload, todo: Sequence[int], jobs: int
) -> Iterator[tuple[int, Figures]]:
    """Cells on processes of their own, each with a pipe, so that a death is known to be whose."""
    warm_up()  # once here rather than in each of them at the same time
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(todo))
    attempts: dict[int, int] = dict.fromkeys(todo, 0)
    working: dict[Connection, tuple[BaseProcess, int]] = {}

    def give(connection: Connection, process: BaseProcess) -> None:
        if waiting:
            index = waiting.pop()
            attempts[index] += 1
            working[connection] = (process, index)
            connection.send(cells[index])
        else:
            connection.close()
            process.join()

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, workload), daemon=True)
        process.start()
        theirs.close()
        give(ours, process)

    try:
        for _ in range(jobs):
            start()
        while working:
            for connection in wait(list(working)):
                assert isinstance(connection, Connection)
                process, index = working.pop(connection)
                try:
                    row, refusal = connection.recv()
                except (EOFError, ConnectionError):
                    process.join()
                    connection.close()
                    if attempts[index] < _ATTEMPTS:
                        waiting.append(index)
                    else:
                        yield index, _failure(cells[index], process.exitcode)
                    if waiting:
                        start()
                    continue
                if refusal is not None:
                    raise InputError(refusal)
                give(connection, process)
                yield index, row
    finally:
        for process, _ in working.values():
            process.terminate()


def _work(connection: Connection[Any, Any], workload: Workload) -> None:
    """A worker: cells come in, figures go out, until the pipe is closed."""
    while True:
        try:
            cell = connection.recv()
        except (EOFError, KeyboardInterrupt):
            return
        try:
            connection.send((run_cell(cell, workload), None))
        except LengthwiseError as error:
            connection.send((None, str(error)))


def _on_ray(
    cells: Sequence[Cell], workload: Workload, todo: Sequence[int]
) -> Iterator[tuple[int, Figures]]:
    """The same on a Ray cluster: one task a cell, the workload sent to each machine once."""
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray") from None
    if not ray.is_initialized():
        ray.init(log_to_driver=False)
    shared = ray.put(workload)
    task = ray.remote(num_cpus=1, max_retries=_ATTEMPTS - 1)(run_cell)
    pending = {task.remote(cells[index], shared): index for index in todo}
    while pending:
        ready, _ = ray.wait(list(pending), num_returns=1)
        index = pending.pop(ready[0])
        try:
            yield index, ray.get(ready[0])
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, LengthwiseError):
                raise InputError(str(error.cause)) from None
            raise
        except ray.exceptions.RayError:
            yield index, _failure(cells[index], None)


def _failure(cell: Cell, code: int | None) -> Figures:
    reason = "its worker died" + ("" if code is None else f" (exit code {code})")
    return {
        "policy": cell.label,
        "load": cell.load,
        "seed": cell.seed,
        "error": f"{reason}, {_ATTEMPTS} times",
    }


def _identity(cell: Cell, workload: Workload) -> str:
    """What a finished cell is found again by: all that its figures depend on, the code included."""
    code = package_versions(["lengthwise", "numpy"])  # numpy draws
    said = {"code": code, "cell": cell.key(), "hash_tokens": workload.trace.hash_tokens}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True, default=str).encode())
    columns = {each.name: getattr(workload.trace, each.name) for each in fields(workload.trace)}
    columns["predictions"] = workload.predictions
    for name, column in columns.items():
        if isinstance(column, np.ndarray):
            # The name and the length, so that no column's bytes are taken for another's.
            digest.update(f"{name} {column.dtype} {column.shape}".encode())
            digest.update(column.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Figures]:
    """Finished cells of an earlier run; a line still being written when it was stopped is left."""
    if not path.exists():
        return {}
    try:
        rows = list(json_objects(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error
    return {row["cell"]: row["figures"] for row in rows if {"cell", "figures"} <= row.keys()}


def _append(path: Path, identity: str, row: Figures) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"cell": identity, "figures": row}) + "\n")
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def write_plots(rows: Sequence[Figures], folder: Path) -> list[Path]:
    """Latency over load for each policy, one SVG a figure; medians over seeds.

    Loads that are no numbers (a burst) are left out; nothing is drawn for less than two loads.

    Returns:
        The files.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    curves: dict[str, dict[float, list[Figures]]] = {}
    for row in rows:
        load = row.get("offered_load")
        if "error" not in row and load is not None and row["load"] != "burst":
            by_load = curves.setdefault(row["policy"], {})
            by_load.setdefault(round(load, 3), []).append(row)
    files: list[Path] = []
    if max((len(by_load) for by_load in curves.values()), default=0) < 2:
        return files
    for name, title in _DRAWN:
        figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
        for policy, by_load in curves.items():
            loads = sorted(by_load)
            axes.plot(
                loads,
                [median(row[name] for row in by_load[load]) / 1000 for load in loads],
                marker="o",
                markersize=3,
                label=policy,
            )
        axes.set(xlabel="Offered load", ylabel=title, yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
        file = folder / f"{name.removesuffix('_ms')}.svg"
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
        files.append(file)
    return files
