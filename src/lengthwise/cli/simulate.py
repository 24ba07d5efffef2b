"""`lengthwise simulate`: what policies would do, without an engine."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lengthwise.cli.options import (
    FirstRequestsOption,
    GpuOption,
    JobsOption,
    JsonOption,
    KvBlocksOption,
    PresetModelOption,
    SkipMalformedOption,
    SlotsOption,
    TokenBudgetOption,
    refuse_given,
)

if TYPE_CHECKING:
    from rich.table import Table

    from lengthwise.advise.sweep import Figures


class Place(StrEnum):
    """Where a sweep runs."""

    CORES = "cores"
    RAY = "ray"


#: what says how to read a trace
_OF_TRACES: Final = ("--from", "--to", "--block-tokens", "--answer-tokens")


def simulate(
    context: typer.Context,
    workload: Annotated[
        Path,
        typer.Argument(help="A trace (see the guide to traces), or a table of prompts."),
    ],
    policy: Annotated[
        list[str],
        typer.Option(
            help="Policies, separated by commas, with options as in `trail:c=0.5;max_overtakes=50`."
        ),
    ] = ["fcfs,hrrn,srpt"],  # noqa: B006  (typer copies it)
    load: Annotated[
        list[str] | None,
        typer.Option(
            help="Shares of the engines' capacity, or `burst`, or `rate=R` requests/s, separated "
            "by commas; a trace is played as recorded without it."
        ),
    ] = None,
    cost: Annotated[
        Path | None, typer.Option(help="Step costs, made by `lengthwise calibrate`.")
    ] = None,
    model: PresetModelOption = None,
    gpu: GpuOption = None,
    predictor: Annotated[
        str,
        typer.Option(
            help="`noisy-oracle:TAU`, `oracle`, `prompt-length`; for prompts also a folder made by "
            "`lengthwise train`."
        ),
    ] = "noisy-oracle:0.5",
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V,V,…",
            help="Vary c, max_overtakes, blend, tau, kv_blocks, slots or replicas; may be given "
            "again.",
        ),
    ] = None,
    requests: FirstRequestsOption = None,
    start: Annotated[
        float,
        typer.Option("--from", min=0.0, help="Of a trace: s after its first request to begin at."),
    ] = 0.0,
    end: Annotated[
        float | None,
        typer.Option("--to", min=0.0, help="Of a trace: s after its first request to end before."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Of a table: only rows of this split.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(help="Only rows with COLUMN=VALUE, such as `Model=GPT-4` of BurstGPT."),
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a block in a trace's hash_ids.")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="How long answers are, where a trace does not say.")
    ] = None,
    skip_malformed: SkipMalformedOption = False,
    slots: SlotsOption = None,
    token_budget: TokenBudgetOption = None,
    kv_blocks: KvBlocksOption = None,
    block_size: Annotated[int | None, typer.Option(min=1, help="Tokens a KV block.")] = None,
    watermark: Annotated[
        float | None, typer.Option(help="Share of blocks that admission leaves free.")
    ] = None,
    prefix_caching: Annotated[
        bool | None,
        typer.Option("--prefix-caching/--no-prefix-caching", help="Whether freed KV is reusable."),
    ] = None,
    lag: Annotated[
        int | None, typer.Option(min=0, max=1, help="1: asynchronous scheduling.")
    ] = None,
    pausing: Annotated[
        bool,
        typer.Option(
            "--pausing/--no-pausing",
            help="Whether a request that makes way keeps its KV, as under `lengthwise serve`, or "
            "is computed again.",
        ),
    ] = True,
    replicas: Annotated[int, typer.Option(min=1, help="Engines behind a router.")] = 1,
    router: Annotated[
        str,
        typer.Option(
            help="round-robin, least-outstanding, power-of-two, least-predicted-work, "
            "predicted-wait or predicted-wait-of-two."
        ),
    ] = "least-outstanding",
    cv: Annotated[
        float | None,
        typer.Option(help="Random gaps with this coefficient of variation; 1 is Poisson, 0 even."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with so many seeds.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first of them.")] = 0,
    jobs: JobsOption = None,
    on: Annotated[Place, typer.Option(help="Where to run.")] = Place.CORES,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for results.json and plots; a stopped sweep goes on there."),
    ] = None,
    json: JsonOption = False,
) -> None:
    """Simulate policies on a trace or a table of prompts, step by step as vLLM V1 works.

    Ranks, guards and preemption are the functions that decide in vLLM. At a load of 1 or more the
    queue grows without bound: figures then describe the stretch that was simulated.

    Example: `lengthwise simulate trace.parquet --policy fcfs,srpt --model llama-3-8b --gpu h100`
    """
    import json as json_module
    from dataclasses import asdict, replace

    from rich.console import Console

    from lengthwise.advise.sweep import Cell, capacity, full_batch, run_sweep, write_plots
    from lengthwise.cli.output import ConsoleProgress, print_json
    from lengthwise.compare.simulated import (
        choose_machine,
        missed_loads,
        read_workload,
        sweep_cells,
        with_ratios,
    )
    from lengthwise.errors import InputError
    from lengthwise.files import replace_file
    from lengthwise.serve.places import MORE

    if on is Place.RAY:
        refuse_given(context, ["--jobs"], "is for the cores of this machine: leave it out")
    machine = choose_machine(
        cost=cost,
        model=model,
        gpu=gpu,
        given={
            "slots": slots,
            "token_budget": token_budget,
            "kv_blocks": kv_blocks,
            "block_size": block_size,
            "watermark": watermark,
            "prefix_caching": prefix_caching,
            "lag": lag,
        },
    )
    engine = replace(machine.engine, max_seqs=None)
    if pausing:
        engine = machine.engine.with_places(MORE)
    with ConsoleProgress() as progress:
        source, predicts = read_workload(
            workload,
            requests=requests,
            split=split,
            where=where,
            predictor=predictor,
            skip_malformed=skip_malformed,
            progress=progress,
            reading={
                "window_s": (start, end),
                "block_tokens": block_tokens,
                "answer_tokens": answer_tokens,
                "seed": seed,
            },
        )
        default = "trace"
        if source.trace.layout == "prompts":
            default = "0.9"
            refuse_given(context, _OF_TRACES, f"is for a trace, and {workload} is none")
        base = Cell(
            label="",
            discipline={},
            load=default,
            cost=machine.cost,
            engine=engine,
            cv=cv,
            predictor=predicts,
            replicas=replicas,
            router=router,
        )
        cells = list(
            sweep_cells(
                base,
                policy,
                load or [default],
                sweep or [],
                range(seed, seed + seeds),
                pausing=pausing,
            )
        )
        if all(cell.replicas == 1 for cell in cells):
            refuse_given(context, ["--router"], "is for several engines: add --replicas N")
        if all(cell.load in ("burst", "trace") for cell in cells):
            refuse_given(context, ["--cv"], "is for gaps at random: add --load with a number")
        progress.stage(f"simulating {len(source.trace):,} requests", total=len(cells))
        rows = run_sweep(
            cells,
            source,
            jobs=jobs,
            on=on.value,
            results=None if out is None else out / "cells.jsonl",
            done=progress.advance,
        )
        for row in rows:
            if "error" in row:
                progress.note(f"{row['policy']} at {row['load']}: {row['error']}")
        for line in missed_loads(rows):
            progress.note(line)
        busy = {row["load"] for row in rows if (row.get("offered_load") or 0.0) >= 1.0}
        for label in sorted(busy):
            progress.note(
                f"load {label}: more is offered than the engines can do, so the queue grows as "
                "long as requests come; figures are of this stretch only"
            )
    document: dict[str, Any] = {
        "workload": source.trace.name,
        "requests": len(source.trace),
        "cost": asdict(machine.cost),
        "engine": asdict(engine),
        "full_batch": full_batch(source.trace, engine),
        "capacity_requests_per_s": capacity(source.trace, machine.cost, engine),
        "results": with_ratios(rows),
    }
    if out is not None:
        text = json_module.dumps(document, indent=2) + "\n"
        try:
            replace_file(out / "results.json", text.encode())
            write_plots(document["results"], out)
        except OSError as error:
            path = error.filename2 or error.filename or out
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error
    if json:
        print_json(document)
    else:
        Console(highlight=False).print(_as_table(document))


def _as_table(document: dict[str, Any]) -> Table:
    """Medians over the seeds."""
    from statistics import median

    from rich.table import Table

    from lengthwise.compare.simulated import SWEPT

    varied = [name for name in SWEPT if any(name in row for row in document["results"])]
    varied = [name for name in varied if name != "replicas" or _several(document, "replicas")]
    table = Table(
        title=f"{document['workload']}: {document['requests']:,} requests, one engine can do "
        f"{document['capacity_requests_per_s']:.3g} a second",
        caption=f"Simulated, times in s. Step costs: {document['cost']['source']}.",
    )
    for heading in ("policy", "load", *varied):
        table.add_column(heading, overflow="fold")
    for heading in ("mean", "p50", "p99", "TTFT", "s/token", "paused", "preempted", "fcfs/policy"):
        table.add_column(heading, justify="right")
    groups: dict[tuple[Any, ...], list[Figures]] = {}
    for row in document["results"]:
        if "error" not in row:
            key = (row["policy"], row["load"], *(row.get(name, "") for name in varied))
            groups.setdefault(key, []).append(row)
    for key, group in groups.items():

        def middle(name: str, group: list[Figures] = group) -> float:
            return float(median(row[name] for row in group if row.get(name) is not None))

        ratio = "fcfs_over_policy_mean_e2el"
        table.add_row(
            *map(_shown, key),
            *(
                f"{middle(name) / 1000:.3g}"
                for name in (
                    "mean_e2el_ms",
                    "median_e2el_ms",
                    "p99_e2el_ms",
                    "mean_ttft_ms",
                    "mean_latency_per_output_token_ms",
                )
            ),
            f"{middle('pauses'):,.0f}",
            f"{middle('preemptions') + middle('memory_preemptions'):,.0f}",
            f"{middle(ratio):.2f}×" if ratio in group[0] else "",
        )
    return table


def _several(document: dict[str, Any], name: str) -> bool:
    return len({row.get(name) for row in document["results"]}) > 1


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
