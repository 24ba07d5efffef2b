"""Policies compared on vLLM in virtual time: `lengthwise bench --engine virtual`.

With `--forward` a model computes, and a GPU's clock counts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from lengthwise.compare.own_answers import (
    LEARNT_FROM,
    corpus_table,
    held_out_tau,
    learn,
    learn_from_answers,
    reference_requests,
    same_length,
)
from lengthwise.compare.progress import Progress
from lengthwise.compare.rounds import Plan, choose_requests, describe_requests
from lengthwise.compare.simulated import Machine, choose_machine
from lengthwise.compare.virtual import Draw, VirtualSession, run_virtual_plan
from lengthwise.errors import InputError
from lengthwise.measure.results import VIRTUAL, ResultsWriter, RunInfo, describe_run, read_results
from lengthwise.predict.load import NO_PREDICTOR, load_predictor
from lengthwise.predict.tokenizer import REFERENCE, PromptTokenizer, load_tokenizer
from lengthwise.serve.command import REFERENCE_FLAGS, model_path, probe_of, require_vllm
from lengthwise.simulate.presets import MODELS, parse_group
from lengthwise.workload.dataset import TRAIN, Dataset

if TYPE_CHECKING:
    from lengthwise.emulate.forward_engine import ComputedModel

DEFAULT_MODEL = "llama-3-8b"
DEFAULT_GPU = "a100"
SAYS = "Virtual, forward pass computed; same machine only."

_PLACES = 512  # for paused requests, in the worker


class HostMemory(NamedTuple):
    """Memory that KV is copied to: its GiB, and vLLM's `--kv-transfer-config` of it."""

    gib: float
    connector: Mapping[str, object]


@dataclass(frozen=True)
class VirtualBench:
    """A comparison in virtual time, whether a model computes in it or not.

    Attributes:
        plan: what is compared; each repeat draws its own requests and arrivals.
        machine: the engine and its costs.
        name: of GPU and model, for the reader.
        tokenizer: whose tokens the predictor reads.
        count: requests in a round.
        out: folder for the results.
        progress: told what happens.
        host: memory that KV is copied to, answers too; None for none.
    """

    plan: Plan
    machine: Machine
    name: str
    tokenizer: PromptTokenizer
    count: int
    out: Path
    progress: Progress
    host: HostMemory | None = None


def refuse_options(given: Mapping[str, object], *, because: str) -> None:
    """Raise an InputError if any of these options was given.

    Args:
        given: the options' values by name; None, False and empty lists were not given.
        because: why they cannot be.
    """
    for name, value in given.items():
        if not (value is None or value is False or value == []):
            raise InputError(f"{name} {because}")


def choose_gpu(
    gpu: str | None, model: str | None, *, slots: int | None, kv_blocks: int | None
) -> Machine:
    """The engine that a GPU and a model make, scheduled asynchronously, as on a GPU.

    Raises:
        InputError: no GPU was named, or an unknown one, or an unknown model.
    """
    if gpu is None:
        raise InputError("--engine virtual needs the GPU whose time it keeps: add --gpu a100")
    machine = choose_machine(
        cost=None,
        model=model or DEFAULT_MODEL,
        gpu=gpu,
        given={"slots": slots, "kv_blocks": kv_blocks},
    )
    return machine._replace(engine=replace(machine.engine, lag=1))


def with_places(machine: Machine) -> Machine:
    """The same with room for paused requests in the worker."""
    engine = machine.engine
    return machine._replace(engine=replace(engine, max_seqs=engine.slots + _PLACES))


def offload_to(gib: float, gpu: str, model: str, block_size: int) -> HostMemory:
    """Host memory for the KV of a model.

    Args:
        gib: its size, shared by all GPUs of the model.
        gpu: the preset's.
        model: the preset's.
        block_size: tokens of a KV block.

    Raises:
        InputError: it does not hold one KV block.
    """
    require_vllm()
    from lengthwise.emulate.driver import host_memory

    count, _ = parse_group(gpu)
    each, token_bytes = gib * 2**30 / count, MODELS[model].kv_bytes(count)
    if not token_bytes * block_size <= each < math.inf:
        raise InputError(
            f"--kv-offloading-size {gib:g} is no memory for KV blocks: name its GiB, such as 64"
        )
    return HostMemory(gib, host_memory(each, token_bytes))


def predictor_tokenizer(predictors: Iterable[str | None]) -> PromptTokenizer:
    """The tokenizer whose tokens trained predictors read; the built-in one where none is trained.

    Args:
        predictors: as `load_predictor` takes them; None for none.

    Raises:
        InputError: one of them or their tokenizer cannot be loaded, or they read the tokens of
            several: a round gives all its predictors the same.
    """
    named = [each for each in dict.fromkeys(predictors) if each and each != NO_PREDICTOR]
    found = [getattr(load_predictor(each), "metadata", None) for each in named]
    name = next((metadata.tokenizer for metadata in found if metadata is not None), REFERENCE)
    for each in named:
        load_predictor(each, name)
    return load_tokenizer(name)


def learn_from_corpus(
    folder: Path, tokenizer: PromptTokenizer, seed: int, progress: Progress
) -> str:
    """Train a predictor on the built-in model's training prompts; what it learnt from, in words."""
    table = corpus_table(tokenizer, LEARNT_FROM, TRAIN, seed)
    learn(table, tokenizer, folder, seed, progress)
    return f"The predictor learnt from {len(table.prompts):,} other prompts."


def describe_virtual_run(
    machine: Machine,
    *,
    model: str,
    dataset: str,
    requests: int,
    notes: Sequence[str],
    engine_note: str,
    forward: bool = False,
    host: HostMemory | None = None,
) -> RunInfo:
    """`describe_run` in virtual time; `forward` where a model computes in it."""
    run = describe_run(
        model=model, dataset=dataset, requests=requests, server_arguments=(), notes=notes
    )
    engine = machine.engine
    return replace(
        run,
        engine=VIRTUAL,
        forward=forward,
        engine_note=engine_note,
        server={
            "slots": engine.slots,
            "token_budget": engine.token_budget,
            "kv_blocks": engine.kv_blocks,
            "block_size": engine.block_size,
            "step_costs": machine.cost.source,
            **({} if host is None else {"kv_offloading_gib": host.gib}),
        },
    )


def run_virtual_bench(
    bench: VirtualBench, table: Dataset, *, context: int, learnt: str | None = None
) -> None:
    """Run the plan on a table's prompts and leave the results in a folder.

    Args:
        bench: what is compared, on what.
        table: prompts, answer lengths and, where it has them, prompt lengths.
        context: of the model, in tokens; longer requests are left out.
        learnt: of a predictor that was trained for this run, in a sentence.
    """
    plan, tokenizer, progress = bench.plan, bench.tokenizer, bench.progress

    def draw(seed: int) -> Draw:
        requests, notes = choose_requests(
            table, tokenizer, count=bench.count, max_model_len=context, seed=seed
        )
        return Draw(requests, notes)

    first = draw(plan.seed)
    notes = [*([learnt] if learnt else []), *first.notes]
    for line in (describe_requests(first.requests), *notes):
        progress.note(line)
    machine, name, host = bench.machine, bench.name, bench.host
    engine = machine.engine
    counted = (
        f"as the data counts them (column {table.prompt_tokens_column})"
        if table.prompt_tokens is not None
        else f"counted by the tokenizer of {tokenizer.name}"
    )
    run = describe_virtual_run(
        machine,
        model=name,
        dataset=f"{table.name} ({table.selection})",
        requests=len(first.requests),
        notes=notes,
        engine_note=(
            f"{name}: {engine.slots} slots, {engine.token_budget:,} tokens a step. Prompt tokens: "
            f"{counted}."
            + ("" if host is None else f" KV is copied to {host.gib:g} GiB of host memory.")
        ),
        host=host,
    )
    connector = None if host is None else host.connector
    session = VirtualSession(machine.cost, engine, bench.out, connector)
    run_virtual_plan(plan, session, draw, ResultsWriter(bench.out, run), progress)


def choose_pace(
    gpu: str | None, *, slots: int | None, kv_blocks: int | None
) -> tuple[str, Machine]:
    """Whose steps are counted: `a100`, or `a100:llama-3-8b` with the model.

    Returns:
        The preset's name and the engine, with the KV blocks of an engine that computes here.

    Raises:
        InputError: an unknown GPU or model.
    """
    from lengthwise.emulate.forward_engine import BLOCK_SIZE

    card, _, model = (gpu or DEFAULT_GPU).partition(":")
    machine = choose_machine(
        cost=None,
        model=model or DEFAULT_MODEL,
        gpu=card,
        given={"slots": slots, "kv_blocks": kv_blocks, "block_size": BLOCK_SIZE},
    )
    name = f"{card}:{model or DEFAULT_MODEL}"
    return name, machine._replace(engine=replace(machine.engine, lag=1))


def computed_model(model: str, probe: Path | None, interval: int | None) -> ComputedModel:
    """The model that computes, and the probe that reads it.

    Args:
        model: a folder, or `reference`.
        probe: folder of the probe; None without one.
        interval: steps from one prediction of the probe to the next.

    Raises:
        InputError: there is no such model here, the machine cannot hold it, or the probe is for
            another one.
    """
    require_vllm()
    folder = Path(model_path(model))
    if not (folder / "config.json").is_file():
        hint = ""
        if model in MODELS:
            hint = f"; for its step times alone add --gpu {DEFAULT_GPU}:{model}"
        raise InputError(
            f"--forward computes a model, and there is none in {model!r}: name its folder, or "
            f"leave --model out for the built-in one{hint}"
        )
    from lengthwise.emulate.forward_engine import ComputedModel, refuse_large

    refuse_large(folder)
    dtype = REFERENCE_FLAGS["--dtype"] if model == REFERENCE else "auto"
    return ComputedModel(folder, dtype or "auto", probe_of(probe, interval, model))


def run_forward_bench(
    bench: VirtualBench,
    model: ComputedModel,
    read: Callable[[], Dataset] | None,
    *,
    model_name: str,
    learn_into: Path | None,
) -> None:
    """Run the plan with a model that computes, and leave the results in a folder.

    Args:
        bench: what is compared, at whose pace.
        model: what computes.
        read: reads the table of prompts and lengths; None for the built-in model's own prompts,
            each answered to its own end.
        model_name: as the user named it.
        learn_into: folder for a prompt predictor to train on the model's answers; None for none.
    """
    from lengthwise.compare.virtual_forward import ForwardSession

    plan, machine, progress = bench.plan, bench.machine, bench.progress
    tokenizer, count, out = bench.tokenizer, bench.count, bench.out
    session = ForwardSession(machine.cost, machine.engine, out, model)
    table = None if read is None else read()

    def draw(seed: int) -> Draw:
        if table is None:
            progress.stage("letting the model answer")
            return Draw(reference_requests(session.answer, tokenizer, count, seed))
        requests, notes = choose_requests(
            table, tokenizer, count=count, max_model_len=session.context, seed=seed
        )
        return Draw(requests, notes)

    first = draw(plan.seed)
    probe_tau = session.probe_tau
    if table is None:
        notes = [
            "Each answer was ended by the model itself, sampled with a seed of its own; oracles "
            "know its length from a round in advance.",
            "The prompts are test prompts: neither predictor nor probe has seen them.",
        ]
    else:
        notes = ["Every answer was given the length that the table says.", *first.notes]
    if learn_into is not None:
        progress.stage("letting the model answer training prompts")
        predictor = learn_from_answers(session.answer, tokenizer, learn_into, plan.seed, progress)
        notes.append(
            f"The prompt predictor learnt from {LEARNT_FROM} other answers; its Kendall tau on the "
            f"requests compared is {held_out_tau(predictor, first.requests):.2f}."
        )
    if model.probe is not None:
        notes.append(
            f"The probe ran every {model.probe.interval} steps; its own time is not in the clock."
        )
    if probe_tau is not None:
        notes.append(
            "Once their prompts had been computed, the probe's Kendall tau on these requests was "
            f"{probe_tau:.2f}."
        )
    for line in (describe_requests(first.requests), *notes):
        progress.note(line)
    engine = machine.engine
    run = describe_virtual_run(
        machine,
        model=model_name,
        dataset="the built-in model's own prompts and answers"
        if table is None
        else f"{table.name} ({table.selection})",
        requests=len(first.requests),
        notes=notes,
        forward=True,
        engine_note=(
            f"{SAYS} {model_name} computes, steps as long as those of {bench.name}: {engine.slots} "
            f"slots, {engine.token_budget:,} tokens a step."
        ),
    )
    draws = {plan.seed: first}
    run_virtual_plan(
        plan,
        session,
        lambda seed: draws[seed] if seed in draws else draw(seed),
        ResultsWriter(out, run),
        progress,
    )
    if table is None and plan.repeats == 1:
        share = same_length(first.requests, read_results(out))
        progress.note(f"{share:.1%} of all answers had the length found in advance")
