"""`lengthwise doctor`: whether a server's traffic queues enough to gain, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lengthwise.cli.options import (
    GpuOption,
    JobsOption,
    JsonOption,
    PresetModelOption,
    refuse_given,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from rich.console import RenderableType
    from rich.table import Table

    from lengthwise.advise.doctor import Prospect
    from lengthwise.cli.output import ConsoleProgress

#: what says how to simulate
_OF_LOGS: Final = (
    "--cost",
    "--model",
    "--gpu",
    "--slots",
    "--kv-blocks",
    "--seeds",
    "--seed",
    "--jobs",
)
_HOW_TO_RECORD = (
    "How much there is to gain takes a log. Serve with the Lengthwise scheduler and the settings "
    '{"policy": "fcfs", "record": "build/log"} (the order of stock vLLM) through the hours that '
    "matter; then: lengthwise doctor --log build/log"
)


def doctor(
    context: typer.Context,
    log: Annotated[
        Path | None,
        typer.Option(help="Folder that the setting `record` or `length_log` names."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(help="A vLLM server's metrics, such as `http://localhost:8000/metrics`."),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.0, help="With --url: how long to watch.")] = 10.0,
    cost: Annotated[
        Path | None,
        typer.Option(
            help="Step costs, made by `lengthwise calibrate`.",
            show_default="fitted to the log's own steps",
        ),
    ] = None,
    model: PresetModelOption = None,
    gpu: GpuOption = None,
    slots: Annotated[
        int | None,
        typer.Option(min=1, help="Requests that run at once.", show_default="as recorded"),
    ] = None,
    kv_blocks: Annotated[
        int | None, typer.Option(min=1, help="KV blocks.", show_default="as recorded")
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=2, help="Draws of each predictor's noise, for the intervals.")
    ] = 5,
    seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    jobs: JobsOption = None,
    json: JsonOption = False,
) -> None:
    """Say whether traffic queues enough for length-aware scheduling to help, and what limits it.

    With a log, how much it would help is simulated, for predictors of several qualities. A running
    server's counters tell whether it queues.

    Example: `lengthwise doctor --log build/log`
    """
    from rich.console import Console

    from lengthwise.cli.output import ConsoleProgress, print_json
    from lengthwise.errors import InputError

    if (log is None) == (url is None):
        raise InputError(
            "give --log DIR, a folder that the setting `record` or `length_log` names, or --url, "
            "such as http://localhost:8000/metrics"
        )
    if url is None:
        refuse_given(context, ["--seconds"], "is for a running server: leave it out")
    else:
        refuse_given(context, _OF_LOGS, "is for a log, which is simulated: leave it out")
    with ConsoleProgress() as progress:
        if url is not None:
            document = _of_server(url, seconds, progress)
        else:
            assert log is not None
            document = _of_log(
                log,
                {"cost": cost, "model": model, "gpu": gpu},
                {"slots": slots, "kv_blocks": kv_blocks},
                range(seed, seed + seeds),
                jobs,
                progress,
            )
    if json:
        print_json(document)
    else:
        Console(highlight=False, soft_wrap=True).print(_as_text(document))


def _of_server(url: str, seconds: float, progress: ConsoleProgress) -> dict[str, Any]:
    """The diagnosis of a running server."""
    from lengthwise.advise.doctor import limiting, signs_of_server, verdict
    from lengthwise.measure.server_metrics import watch_server

    progress.stage(f"watching {url}")
    signs = signs_of_server(watch_server(url, seconds, progress=progress.advance))
    return {
        "source": url,
        "verdict": verdict(signs, []),
        "limits": limiting(signs),
        **_signs(signs),
        "simulated": None,
        "next": _HOW_TO_RECORD,
    }


def _of_log(
    folder: Path,
    costs: Mapping[str, Any],
    given: Mapping[str, Any],
    seeds: range,
    jobs: int | None,
    progress: ConsoleProgress,
) -> dict[str, Any]:
    """The diagnosis of a recorded log."""
    from dataclasses import asdict, replace

    from lengthwise.advise.doctor import PREDICTORS, limiting, prospects, signs_of_log, verdict
    from lengthwise.advise.sweep import Cell, Workload
    from lengthwise.compare.engine_log import read_steps
    from lengthwise.compare.simulated import machine_of_log
    from lengthwise.serve.places import MORE
    from lengthwise.settings import Settings
    from lengthwise.workload.open_trace import recorded_requests
    from lengthwise.workload.trace import load_trace

    progress.stage(f"reading {folder}")
    trace = load_trace(folder)
    for reason, count in trace.left_out.items():
        progress.note(f"left out {count:,} requests: {reason}")
    if trace.rejected:
        progress.note(f"left out {len(trace.rejected):,} requests: {trace.rejected[0].reason}")
    record = read_steps(folder)
    machine = machine_of_log(record, costs, given, progress)
    requests = recorded_requests(folder)
    queue_s, cached = (_column(requests, name) for name in ("queue_s", "cached_tokens"))
    signs = signs_of_log(trace, queue_s, cached, record.steps, machine.engine)
    workload = Workload(trace)
    # What `lengthwise serve` does unless it is told otherwise.
    usual = Settings(policy="srpt", predictor="declared", pausing="auto")
    engine = machine.engine.with_places(MORE)
    base = Cell(label="", discipline={}, load="trace", cost=machine.cost, engine=engine)
    count = 2 + len(seeds) * (len(PREDICTORS) - 1)
    progress.stage(f"simulating {len(trace):,} requests", total=count)
    fcfs, found = prospects(
        workload,
        base,
        usual.discipline_arguments(machine.engine.slots),
        seeds,
        jobs=jobs,
        done=progress.advance,
    )
    signs = replace(signs, load=fcfs["offered_load"])
    if signs.mean_latency_s is None:
        signs = replace(signs, mean_latency_s=fcfs["mean_e2el_ms"] / 1000.0)
    return {
        "source": str(folder),
        "verdict": verdict(signs, found),
        "limits": limiting(signs),
        **_signs(signs),
        "simulated": {
            "policy": "srpt:pausing=auto;max_overtakes=auto",
            "cost": asdict(machine.cost),
            "engine": asdict(engine),
            "seeds": len(seeds),
            "fcfs": fcfs,
            "predictors": [_described(each) for each in found],
        },
        "next": f"lengthwise tune chooses policy and bounds for this log: lengthwise tune {folder}",
    }


def _column(path: Path, name: str) -> NDArray[np.float64]:
    """A column of numbers of the recorded requests; NaN where it has none."""
    import numpy as np

    from lengthwise.workload.column_files import open_columns

    columns = open_columns(path)
    if name not in columns.names:
        return np.full(len(columns.numbers), np.nan)
    values = columns.read(name).to_pylist()
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _signs(signs: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "queues": signs.queues,
        "signs": {**asdict(signs), "queue_share": signs.queue_share},
    }


def _described(prospect: Prospect) -> dict[str, Any]:
    """A prospect as plain values: how many times lower than fcfs, and p99 as a multiple."""
    from lengthwise.advise.doctor import COMPARED
    from lengthwise.intervals import t_interval

    found: dict[str, Any] = {"predictor": prospect.predictor}
    for metric in COMPARED:
        gains = prospect.gains(metric)
        found[metric] = {"gain": float(gains.mean()), "interval": t_interval(gains)}
    return found


def _as_text(document: dict[str, Any]) -> RenderableType:
    """The verdict first, then the limits, then the figures."""
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = [Text(line, style="bold") for line in document["verdict"]]
    if document["limits"]:
        parts.append(Text("\nWhat limits it:"))
        parts += [Text(f"- {line}") for line in document["limits"]]
    if document["simulated"] is not None:
        parts += [Text(), _as_table(document), *map(Text, _remarks(document))]
    parts.append(Text(f"\n{document['next']}"))
    return Group(*parts)


def _as_table(document: dict[str, Any]) -> Table:
    from rich.table import Table

    simulated = document["simulated"]
    table = Table(
        title=f"Simulated: fcfs / {simulated['policy']}, above 1 is better",
        title_justify="left",
        caption=f"95 % intervals over {simulated['seeds']} draws of the predictor's noise. "
        f"Step costs: {simulated['cost']['source']}.",
    )
    table.add_column("predictions", no_wrap=True, min_width=len("true lengths"))
    for heading in ("mean", "p50", "s/token", "TTFT", "p99"):
        table.add_column(heading, justify="right")
    for row in simulated["predictors"]:
        cells = []
        for metric, value in row.items():
            if metric != "predictor":
                low_high = value["interval"]
                spread = "" if low_high is None else f"\n{low_high[0]:.2f}–{low_high[1]:.2f}"
                cells.append(f"{value['gain']:.2f}×{spread}")
        tau = row["predictor"].partition(":")[2]
        table.add_row(f"tau {tau}" if tau else "true lengths", *cells)
    return table


def _remarks(document: dict[str, Any]) -> list[str]:
    """How far the simulation can be trusted here."""
    signs, fcfs = document["signs"], document["simulated"]["fcfs"]
    found = []
    if signs["mean_queue_s"] is not None:
        found.append(
            f"Mean time in the queue, simulated under fcfs: {fcfs['mean_queue_ms'] / 1000:.3g} s; "
            f"recorded, under whatever policy ran: {signs['mean_queue_s']:.3g} s."
        )
    if (signs["cached_share"] or 0.0) >= 0.05:
        found.append(
            f"{signs['cached_share']:.0%} of prompt tokens came from the prefix cache; the "
            "simulation computes them, as a log does not say what prompts share."
        )
    return found
