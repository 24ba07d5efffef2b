"""`lengthwise bench`: policies compared on one real server, with requests from a table."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

PREDICTOR_FOLDER = "predictor"  # within the results, where `bench reference` trains its own


class Arrivals(StrEnum):
    """The gaps between arrivals, where the load does not say them."""

    POISSON = "poisson"
    GAMMA = "gamma"
    TRACE = "trace"


def bench(
    workload: Annotated[
        Path,
        typer.Argument(
            help="Table of prompts and answer lengths: .parquet, .jsonl or .csv; or `reference`: "
            "the built-in model's own prompts, each answered to its own end."
        ),
    ],
    server_flags: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- VLLM_FLAGS]", help="Flags for vLLM, after two dashes."),
    ] = None,
    policy: Annotated[
        list[str],
        typer.Option(
            help="Policies, separated by commas, with options as in "
            "`fcfs,srpt:max_overtakes=50;blend=0.9`. Overtaking is not bounded unless it says so."
        ),
    ] = ["fcfs,ltr,srpt,oracle"],  # noqa: B006  (typer copies it)
    predictor: Annotated[
        str | None,
        typer.Option(
            help="Folder made by `lengthwise train`, or `noisy-oracle:TAU`, …; for `reference` one "
            "is trained if none is given."
        ),
    ] = None,
    probe: Annotated[
        Path | None,
        typer.Option(help="Folder made by `lengthwise train-probe`; runs in every round."),
    ] = None,
    interval: Annotated[
        int | None,
        typer.Option(
            min=1, help="Steps from one prediction of the probe to the next.", show_default="8"
        ),
    ] = None,
    load: Annotated[
        list[str] | None,
        typer.Option(
            help="Offered work over capacity, such as `1.05`; `burst` for all at once. Several: "
            "separated by commas or given again.",
            show_default="burst",
        ),
    ] = None,
    rate: Annotated[list[float] | None, typer.Option(help="Requests per second.")] = None,
    burst: Annotated[bool, typer.Option("--burst", help="All requests at once.")] = False,
    concurrency: Annotated[
        list[int] | None,
        typer.Option(help="Clients of a closed loop, each waiting for its answer."),
    ] = None,
    arrivals: Annotated[
        Arrivals, typer.Option(help="Gaps between arrivals: at random, or as in a trace.")
    ] = Arrivals.POISSON,
    cv: Annotated[
        float, typer.Option(help="For `gamma`: the gaps' standard deviation over their mean.")
    ] = 2.0,
    trace: Annotated[
        Path | None,
        typer.Option(help="For `trace`: parquet file with a column arrival_s; default WORKLOAD."),
    ] = None,
    speed: Annotated[float, typer.Option(help="For `trace`: how much faster to play it.")] = 1.0,
    requests: Annotated[int, typer.Option(min=1, help="Requests in each round.")] = 400,
    repeats: Annotated[int, typer.Option(min=1, help="Rounds per policy and load.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="For the choice of requests and arrivals.")] = 0,
    model: Annotated[
        str, typer.Option(help="Model folder or hub name; `reference` is the built-in model.")
    ] = "reference",
    split: Annotated[
        str | None, typer.Option(help="Only rows whose column `split` has it.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; may be given again.")
    ] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompts.")] = None,
    length_column: Annotated[
        str | None, typer.Option(help="Column of the answers' lengths in tokens.")
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option(help="Column of the answers' texts, where lengths are missing.")
    ] = None,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Leave malformed rows out, and say how many.")
    ] = False,
    port: Annotated[
        int | None, typer.Option(help="The server's port; default: a free one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("bench-results"),
    json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """Compare policies on a real vLLM server: the same requests and arrivals, in turn.

    Prompts are served by MODEL; each answer is given the length that the table says. One server
    serves every round; the policy is switched while it is idle, and its prefix cache emptied.

    Example: `lengthwise bench prompts.parquet --policy fcfs,srpt,oracle --predictor build/p
    --load burst,1.2 --repeats 3 --out build/b`
    """
    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.cli.own_answers import OWN_ANSWER_FLAGS, run_own_answers
    from lengthwise.cli.report import show_results
    from lengthwise.cli.serve import predictor_setting, require_matching_predictor
    from lengthwise.cli.train import parse_where
    from lengthwise.compare.requests import choose_requests, describe_requests
    from lengthwise.compare.rounds import Plan, run_and_keep
    from lengthwise.compare.run_info import describe_run
    from lengthwise.compare.server_command import REFERENCE, model_path, probe_of
    from lengthwise.compare.session import open_session
    from lengthwise.compare.specs import parse_loads, parse_policies, read_trace
    from lengthwise.errors import InputError
    from lengthwise.measure.results import ResultsWriter
    from lengthwise.predict.tokenizer import load_tokenizer
    from lengthwise.workload.dataset import load_dataset

    flags = server_flags or []
    if flags and not flags[0].startswith("-"):
        raise InputError(
            f"unexpected argument {flags[0]!r}: one WORKLOAD, then -- and vLLM's flags"
        )
    own = str(workload) == REFERENCE and not workload.exists()
    if own and model != REFERENCE:
        raise InputError("`bench reference` serves the built-in model: leave --model out")
    if own:
        flags = [*OWN_ANSWER_FLAGS, *flags]
    chosen_predictor = predictor_setting(predictor)
    if own and predictor is None:
        chosen_predictor = str((out / PREDICTOR_FOLDER).absolute())
    settings = parse_policies(policy, chosen_predictor)
    if not own or predictor is not None:
        for each in settings.values():
            require_matching_predictor(each, model)
    wanted = probe_of(probe, interval, model)
    recorded = read_trace(trace or workload, speed) if arrivals is Arrivals.TRACE else None
    if recorded is not None and (load or rate):
        raise InputError("--arrivals trace says when requests arrive: leave --load and --rate out")
    plan = Plan(
        policies=settings,
        loads=parse_loads(load or (), rate or (), concurrency or (), burst=burst, trace=recorded),
        repeats=repeats,
        cv=cv if arrivals is Arrivals.GAMMA else 1.0,
        seed=seed,
    )
    tokenizer = load_tokenizer(model_path(model))
    if own:
        with (
            ConsoleProgress() as progress,
            open_session(
                model, out, flags=flags, port=port, progress=progress, probe=wanted
            ) as session,
        ):
            run_own_answers(
                plan,
                session,
                tokenizer,
                out,
                learn_into=None if predictor else out / PREDICTOR_FOLDER,
                count=requests,
                probe=wanted,
                progress=progress,
            )
        show_results(out, json=json)
        return
    table = load_dataset(
        workload,
        prompt_column=prompt_column,
        length_column=length_column,
        answer_column=answer_column,
        split=split,
        where=parse_where(where),
        count_tokens=tokenizer.count_tokens,
    )
    if not skip_malformed:
        table.refuse_rejected()
    with (
        ConsoleProgress() as progress,
        open_session(
            model, out, flags=flags, port=port, progress=progress, probe=wanted
        ) as session,
    ):
        chosen, notes = choose_requests(
            table, tokenizer, count=requests, max_model_len=session.max_model_len, seed=seed
        )
        if table.rejected:
            notes.append(f"{len(table.rejected)} malformed rows were left out")
        for line in (describe_requests(chosen), *notes):
            progress.note(line)
        notes.append("Every answer was given the length that the table says (ignore_eos).")
        run = describe_run(
            model=model,
            dataset=f"{table.name} ({table.selection})",
            requests=len(chosen),
            server_arguments=session.server_arguments,
            notes=notes,
        )
        run_and_keep(plan, session, chosen, ResultsWriter(out, run), progress)
    show_results(out, json=json)
