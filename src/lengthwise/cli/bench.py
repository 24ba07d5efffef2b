"""`lengthwise bench`: policies compared on one real server, or on vLLM in virtual time."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lengthwise.cli.options import (
    AnswerColumnOption,
    IntervalOption,
    PromptColumnOption,
    SkipMalformedOption,
    SplitOption,
    WhereOption,
    refuse_given,
)

if TYPE_CHECKING:
    from lengthwise.predict.tokenizer import PromptTokenizer
    from lengthwise.workload.dataset import Dataset

PREDICTOR_FOLDER = "predictor"  # within the results, where `bench reference` trains its own


class Engine(StrEnum):
    """What serves the requests."""

    LIVE = "live"
    VIRTUAL = "virtual"


class Arrivals(StrEnum):
    """The gaps between arrivals, where the load does not say them."""

    POISSON = "poisson"
    GAMMA = "gamma"
    TRACE = "trace"


#: what says how to read a table
_OF_TABLES: Final = (
    "--split",
    "--where",
    "--prompt-column",
    "--length-column",
    "--answer-column",
    "--skip-malformed",
)


def bench(
    context: typer.Context,
    workload: Annotated[
        Path,
        typer.Argument(
            help="Prompts and answers, in any layout that `inspect` knows; or `reference`: "
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
    interval: IntervalOption = None,
    engine: Annotated[
        Engine,
        typer.Option(
            help="`live`: a server that computes, on the wall's clock. `virtual`: vLLM without its "
            "forward pass, its steps as long as on a GPU; exact, the same on every machine."
        ),
    ] = Engine.LIVE,
    forward: Annotated[
        bool,
        typer.Option(
            "--forward",
            help="For `--engine virtual`: MODEL really computes its tokens and hidden states, and "
            "a probe may read them; its steps are as long as on `--gpu`.",
        ),
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="For `--engine virtual`: whose steps, such as `a100`; with `--forward` also with "
            "the model, `a100:llama-3-8b`, which is the default."
        ),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(min=1, help="Slots: requests that run at once, as in vLLM.")
    ] = None,
    pausing: Annotated[
        bool | None,
        typer.Option(
            "--pausing/--no-pausing",
            help="For `--engine virtual`: a request that makes way keeps its KV, and is not "
            "computed again.",
            show_default="with --forward",
        ),
    ] = None,
    kv_blocks: Annotated[
        int | None,
        typer.Option(min=1, help="For `--engine virtual`: KV blocks; default: the GPU's."),
    ] = None,
    kv_offloading_size: Annotated[
        float | None,
        typer.Option(
            help="For `--engine virtual`: GiB of host memory that vLLM's own connector copies KV "
            "to, answers too, at 25 GB/s. A live server takes it after two dashes."
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1, help="For `--engine virtual`: draws of requests and arrivals.", show_default="1"
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
        typer.Option(
            help="For `trace`: one in any layout that `inspect` knows; default WORKLOAD. Later "
            "turns of sessions come after the answers to those before them."
        ),
    ] = None,
    speed: Annotated[float, typer.Option(help="For `trace`: how much faster to play it.")] = 1.0,
    requests: Annotated[int, typer.Option(min=1, help="Requests in each round.")] = 400,
    repeats: Annotated[
        int | None, typer.Option(min=1, help="Rounds per policy and load.", show_default="1")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For the choice of requests and arrivals.")] = 0,
    model: Annotated[
        str | None,
        typer.Option(
            help="Model folder or hub name; `reference` is the built-in model. With `--engine "
            "virtual`: whose shape and steps, such as `llama-3-8b`; with `--forward`: what "
            "computes.",
            show_default="reference; virtual without forward: llama-3-8b",
        ),
    ] = None,
    split: SplitOption = None,
    where: WhereOption = None,
    prompt_column: PromptColumnOption = None,
    length_column: Annotated[
        str | None, typer.Option(help="Column of the answers' lengths in tokens.")
    ] = None,
    answer_column: AnswerColumnOption = None,
    skip_malformed: SkipMalformedOption = False,
    port: Annotated[
        int | None, typer.Option(help="The server's port; default: a free one.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("bench-results"),
    json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """Compare policies on a real vLLM server: the same requests and arrivals, in turn.

    Prompts are served by MODEL; each answer is given the length that the table says. One server
    serves every round; the policy is switched while it is idle, and its prefix cache emptied. In
    virtual time every round has an engine of its own, and nothing depends on this machine.

    Example: `lengthwise bench prompts.parquet --policy fcfs,srpt,oracle --predictor build/p
    --load burst,1.2 --repeats 3 --out build/b`, or with `--engine virtual --gpu a100
    --model llama-3-8b --seeds 3` instead of `--repeats 3`
    """
    from lengthwise.cli.output import ConsoleProgress
    from lengthwise.cli.report import show_results
    from lengthwise.cli.serve import require_matching_predictor
    from lengthwise.compare.own_answers import OWN_ANSWER_FLAGS, corpus_table, run_own_answers
    from lengthwise.compare.rounds import Plan, run_table
    from lengthwise.compare.session import open_session
    from lengthwise.compare.specs import Capacity, Rate, parse_loads, parse_policies, read_trace
    from lengthwise.compare.virtual_bench import (
        DEFAULT_MODEL,
        VirtualBench,
        choose_gpu,
        choose_pace,
        computed_model,
        learn_from_corpus,
        offload_to,
        predictor_tokenizer,
        refuse_options,
        run_forward_bench,
        run_virtual_bench,
        with_places,
    )
    from lengthwise.errors import InputError
    from lengthwise.predict.tokenizer import load_tokenizer
    from lengthwise.serve.command import REFERENCE, REFERENCE_FLAGS, model_path, probe_of
    from lengthwise.serve.settings_file import predictor_setting
    from lengthwise.simulate.presets import MODELS
    from lengthwise.workload.dataset import TEST, load_dataset, parse_where

    if server_flags and not server_flags[0].startswith("-"):
        raise InputError(
            f"unexpected argument {server_flags[0]!r}: one WORKLOAD, then -- and vLLM's flags"
        )
    own = str(workload) == REFERENCE and not workload.exists()
    if own:
        refuse_given(context, _OF_TABLES, "is for a table, and `reference` is none: leave it out")
    if arrivals is not Arrivals.GAMMA:
        refuse_given(context, ["--cv"], "is for gaps at random: add --arrivals gamma")
    if arrivals is not Arrivals.TRACE:
        refuse_given(context, ("--trace", "--speed"), "is for a trace: add --arrivals trace")
    machine = computed = host = None
    pace = ""
    if engine is Engine.VIRTUAL:
        refuse_options(
            {"--port": port, "--repeats": repeats, "vLLM's flags after --": server_flags},
            because="makes no sense in virtual time: leave it out, or take --engine live",
        )
        if forward:
            refuse_options(
                {"--kv-offloading-size": kv_offloading_size},
                because="is for engines that compute nothing: leave it out, or --forward",
            )
            model = model or REFERENCE
            slots = max_num_seqs
            if model == REFERENCE and slots is None:  # as a server has with this model
                slots = int(REFERENCE_FLAGS["--max-num-seqs"] or 1)
            pace, machine = choose_pace(gpu, slots=slots, kv_blocks=kv_blocks)
            computed = computed_model(model, probe, interval)
        else:
            refuse_options(
                {"--probe": probe, "--interval": interval},
                because="reads hidden states, which nothing computes here: add --forward",
            )
            machine = choose_gpu(gpu, model, slots=max_num_seqs, kv_blocks=kv_blocks)
            if kv_offloading_size is not None:
                assert gpu is not None
                size = machine.engine.block_size
                host = offload_to(kv_offloading_size, gpu, model or DEFAULT_MODEL, size)
        pausing = forward if pausing is None else pausing
        if pausing:
            machine = with_places(machine)
    else:
        refuse_options(
            {
                "--forward": forward,
                "--gpu": gpu,
                "--pausing": pausing,
                "--kv-blocks": kv_blocks,
                "--kv-offloading-size": kv_offloading_size,
                "--seeds": seeds,
            },
            because="is for virtual time: add --engine virtual, or leave it out",
        )
        model = model or REFERENCE
        if own and model != REFERENCE:
            raise InputError("`bench reference` serves the built-in model: leave --model out")
    learn_into = out / PREDICTOR_FOLDER if own and predictor is None else None
    chosen = predictor_setting(predictor) if learn_into is None else str(learn_into.absolute())
    settings = parse_policies(policy, chosen, pausing=bool(pausing))
    there = [each for each in settings.values() if learn_into is None or each.predictor != chosen]
    recorded = read_trace(trace or workload, speed) if arrivals is Arrivals.TRACE else None
    if recorded is not None and (load or rate):
        raise InputError("--arrivals trace says when requests arrive: leave --load and --rate out")
    plan = Plan(
        policies=settings,
        loads=parse_loads(load or (), rate or (), concurrency or (), burst=burst, trace=recorded),
        repeats=(repeats if machine is None else seeds) or 1,
        cv=cv if arrivals is Arrivals.GAMMA else 1.0,
        seed=seed,
    )

    if recorded is None and not any(isinstance(each, Capacity | Rate) for each in plan.loads):
        refuse_given(context, ["--arrivals"], "is for gaps: add --load or --rate with a number")

    def read_workload(tokenizer: PromptTokenizer, *, prompt_tokens: bool) -> Dataset:
        table = load_dataset(
            workload,
            prompt_column=prompt_column,
            length_column=length_column,
            answer_column=answer_column,
            split=split,
            where=parse_where(where),
            count_tokens=tokenizer.count_tokens,
            prompt_tokens=prompt_tokens,
            refuses=tokenizer.refuses,
        )
        if not skip_malformed:
            table.refuse_rejected()
        return table

    if machine is not None and computed is not None:
        assert model is not None
        if own and model != REFERENCE:
            raise InputError(
                "`bench reference` has the built-in model's prompts: leave --model out"
            )
        for each in there:
            require_matching_predictor(each, model)
        tokenizer = load_tokenizer(model_path(model))
        with ConsoleProgress() as progress:
            run_forward_bench(
                VirtualBench(plan, machine, pace, tokenizer, requests, out, progress),
                computed,
                None if own else lambda: read_workload(tokenizer, prompt_tokens=False),
                model_name=model,
                learn_into=learn_into,
            )
        show_results(out, json=json)
        return
    if machine is not None:
        tokenizer = predictor_tokenizer(each.predictor for each in there)
        with ConsoleProgress() as progress:
            learnt = None
            if learn_into is not None:
                learnt = learn_from_corpus(learn_into, tokenizer, seed, progress)
            name = f"{gpu}:{model or DEFAULT_MODEL}"
            run_virtual_bench(
                VirtualBench(plan, machine, name, tokenizer, requests, out, progress, host),
                corpus_table(tokenizer, 2 * requests, TEST, seed)
                if own
                else read_workload(tokenizer, prompt_tokens=True),
                context=MODELS[model or DEFAULT_MODEL].context,
                learnt=learnt,
            )
        show_results(out, json=json)
        return
    assert model is not None
    for each in there:
        require_matching_predictor(each, model)
    wanted = probe_of(probe, interval, model)
    flags = [] if max_num_seqs is None else ["--max-num-seqs", str(max_num_seqs)]
    flags += server_flags or []
    if own:
        flags = [*OWN_ANSWER_FLAGS, *flags]
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
                learn_into=learn_into,
                count=requests,
                probe=wanted,
                progress=progress,
            )
        show_results(out, json=json)
        return
    table = read_workload(tokenizer, prompt_tokens=False)
    with (
        ConsoleProgress() as progress,
        open_session(
            model, out, flags=flags, port=port, progress=progress, probe=wanted
        ) as session,
    ):
        run_table(
            plan, session, table, tokenizer, out, model=model, count=requests, progress=progress
        )
    show_results(out, json=json)
