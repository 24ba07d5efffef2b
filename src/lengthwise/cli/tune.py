"""`lengthwise tune`: the policy and bounds that suit a workload, found by simulation."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from lengthwise.cli.options import (
    FirstRequestsOption,
    JobsOption,
    JsonOption,
    KvBlocksOption,
    SkipMalformedOption,
    SlotsOption,
    TokenBudgetOption,
)


def tune(
    workload: Annotated[
        Path,
        typer.Argument(help="A trace (see the guide to traces), or a table of prompts."),
    ],
    objective: Annotated[
        str,
        typer.Option(
            help="What to make better: mean-e2el, p50-e2el, mean-latency-per-output-token, "
            "mean-ttft, p99-ttft or goodput."
        ),
    ] = "mean-e2el",
    cap: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METRIC=LIMIT",
            help="What must not get worse, as a multiple of fcfs: `p99-e2el=1.1`; or the longest "
            "wait in seconds: `max-wait-s=30`. May be given again.",
        ),
    ] = None,
    slo: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:MS",
            help="For goodput: ttft:MS, tpot:MS or e2el:MS, such as `ttft:500`. May be given "
            "again.",
        ),
    ] = None,
    load: Annotated[
        str | None,
        typer.Option(
            help="Share of the engine's capacity, or `burst`, or `rate=R` requests/s; a trace is "
            "played as recorded without it."
        ),
    ] = None,
    cost: Annotated[
        Path | None,
        typer.Option(
            help="Step costs, made by `lengthwise calibrate`.",
            show_default="fitted to its steps, where the workload is a recorded folder",
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            help="With --gpu: a preset, such as `llama-3-8b`.",
            show_default="llama-3-8b",
        ),
    ] = None,
    gpu: Annotated[
        str | None, typer.Option(help="Such as `h100`, or `2xa100`.", show_default="h100")
    ] = None,
    predictor: Annotated[
        str | None,
        typer.Option(
            help="Folder made by `lengthwise train`, or `prompt-length`, which the settings will "
            "name; or `noisy-oracle:TAU` for one that orders so well.",
            show_default="noisy-oracle:0.5",
        ),
    ] = None,
    probe_tau: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            help="How well a probe orders answers once the prompt is computed (its tau, see "
            "`lengthwise train-probe`): looks at waiting requests are then tried too.",
            show_default="no probe",
        ),
    ] = None,
    requests: FirstRequestsOption = None,
    split: Annotated[str | None, typer.Option(help="Of a table: only rows of this split.")] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Of a table: only rows with COLUMN=VALUE.")
    ] = None,
    skip_malformed: SkipMalformedOption = False,
    slots: SlotsOption = None,
    token_budget: TokenBudgetOption = None,
    kv_blocks: KvBlocksOption = None,
    seed: Annotated[int, typer.Option(min=0, help="For the noise of predictions.")] = 0,
    jobs: JobsOption = None,
    out: Annotated[
        Path, typer.Option(help="The settings file to write, for `lengthwise serve --settings`.")
    ] = Path("settings.json"),
    json: JsonOption = False,
) -> None:
    """Choose policy, parameters and bounds for a workload, and write the settings for `serve`.

    Hundreds of candidates are simulated beside fcfs on the same arrivals. The choice gains most on
    the objective within the caps, on seeds of the predictor's noise that took no part in the
    search; where none does, the choice is fcfs.

    Example: `lengthwise tune trace.parquet --load 0.9 --objective mean-e2el --cap p99-e2el=1.5
    --out settings.json`
    """
    from dataclasses import asdict

    from rich.console import Console

    from lengthwise.advise.sweep import Cell
    from lengthwise.advise.tune import GOODPUT, parse_caps, require_objective
    from lengthwise.advise.tune import tune as choose
    from lengthwise.cli.output import ConsoleProgress, print_json
    from lengthwise.compare.engine_log import read_steps
    from lengthwise.compare.simulated import (
        choose_machine,
        machine_of_log,
        or_default_machine,
        parse_load,
        read_workload,
    )
    from lengthwise.compare.tuned import as_good_as, chosen_settings, described, tuned_text
    from lengthwise.errors import InputError
    from lengthwise.measure.metrics import parse_objectives
    from lengthwise.serve.places import MORE, MORE_TO_LOOK
    from lengthwise.simulate.predictions import trace_predictions

    require_objective(objective)
    caps = parse_caps(cap or [])
    objectives = parse_objectives(slo or [])
    if bool(objectives) != (objective == GOODPUT):
        raise InputError(
            "--objective goodput counts requests that meet their service-level objectives: give "
            "--slo, such as --slo ttft:500"
            if objective == GOODPUT
            else "--slo is for --objective goodput"
        )
    limits = {"slots": slots, "token_budget": token_budget, "kv_blocks": kv_blocks}
    with ConsoleProgress() as progress:
        if (workload / "steps.jsonl").is_file():
            costs = {"cost": cost, "model": model, "gpu": gpu}
            machine = machine_of_log(read_steps(workload), costs, limits, progress)
        else:
            model, gpu, assumed = or_default_machine(cost, model, gpu)
            if assumed:
                progress.note(assumed)
            machine = choose_machine(cost=cost, model=model, gpu=gpu, given=limits)
        source, predicts = read_workload(
            workload,
            requests=requests,
            split=split,
            where=where,
            predictor=predictor or "noisy-oracle:0.5",
            skip_malformed=skip_malformed,
            progress=progress,
        )
        if predictor is not None and predicts == predictor and Path(predictor).is_dir():
            predicts = as_good_as(predictor, progress)
        if predicts is not None and predicts != "given":
            trace_predictions(source.trace, predicts)  # says what is wrong with it now
        default = "0.9" if source.trace.layout == "prompts" else "trace"
        base = Cell(
            label="",
            discipline={},
            load=parse_load(load or default),
            cost=machine.cost,
            # As `serve` sizes the worker, so that requests can be paused and looked at.
            engine=machine.engine.with_places(MORE if probe_tau is None else MORE_TO_LOOK),
            seed=seed,
            predictor=predicts,
            probe=None if probe_tau is None else f"noisy-oracle:{probe_tau}",
            objectives=objectives,
        )
        result = choose(
            source,
            base,
            objective,
            caps,
            jobs=jobs,
            stage=progress.stage,
            done=progress.advance,
        )
        offered = result.ideal.fcfs[0]["offered_load"]
        if offered is not None and offered >= 1.0:
            progress.note(
                f"load {offered:.2f}: more is offered than the engine can do, so the queue grows "
                "as long as requests come; the choice is for this stretch only"
            )
    settings, note = chosen_settings(result, predictor, probed=probe_tau is not None)
    try:
        settings.write(out)
    except OSError as error:
        raise InputError(f"cannot write {out}: {error.strerror or error}") from error
    document: dict[str, Any] = {
        "workload": source.trace.name,
        "requests": len(source.trace),
        "load": load or ("as recorded" if default == "trace" else default),
        "offered_load": offered,
        "cost": asdict(machine.cost),
        "engine": asdict(machine.engine),
        "predictor": predicts,
        "objective": objective,
        "slo_ms": objectives,
        "caps": {each.metric: each.limit for each in caps},
        "seed": seed,
        "simulations": result.simulations,
        "reason": result.reason or None,
        "chosen": described(result.chosen, caps),
        "true_lengths_gain": result.ideal.gain,
        "front": [described(each, caps) for each in result.front],
        "finalists": [described(each, caps) for each in result.finalists],
        "settings": settings.model_dump(),
        "settings_file": str(out),
        "note": note,
    }
    if json:
        print_json(document)
    else:
        Console(highlight=False, soft_wrap=True).print(tuned_text(document, caps))
