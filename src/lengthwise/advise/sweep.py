"""Many simulations, on all cores or on a cluster, and their pictures.

Each finished cell is one line of a file, if there is one, so that a sweep that was stopped goes on
where it was. A worker that dies costs its cell one retry, and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import median
from typing import Any, Final

from lengthwise.advise.cell import Cell, Figures, Workload, run_cell
from lengthwise.errors import InputError, LengthwiseError, missing_extra
from lengthwise.files import json_objects
from lengthwise.simulate.simulation import warm_up

_ATTEMPTS: Final = 2
PLACES: Final = ("cores", "ray")  #: where a sweep can run
_DRAWN: Final = (
    ("mean_e2el_ms", "Mean end-to-end latency (s)"),
    ("p99_e2el_ms", "p99 end-to-end latency (s)"),
    ("mean_ttft_ms", "Mean time to first token (s)"),
)

Done = Callable[[int], None]


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
    """What a finished cell is found again by."""
    digest = hashlib.sha256(json.dumps(cell.key(), sort_keys=True, default=str).encode())
    trace = workload.trace
    for column in (trace.arrival_s, trace.prompt_tokens, trace.output_tokens):
        digest.update(column.tobytes())
    if workload.predictions is not None:
        digest.update(workload.predictions.tobytes())
    return digest.hexdigest()


def _read(path: Path) -> dict[str, Figures]:
    """Finished cells of an earlier run; a line still being written when it was stopped is left."""
    if not path.exists():
        return {}
    rows = json_objects(path)
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
