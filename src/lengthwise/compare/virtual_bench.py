"""`lengthwise bench --engine virtual`: policies compared on vLLM in virtual time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lengthwise.compare.chosen_requests import choose_requests, describe_requests
from lengthwise.compare.machine import Machine, choose_machine
from lengthwise.compare.own_answers import corpus_table, learn
from lengthwise.compare.progress import Progress
from lengthwise.compare.rounds import Plan
from lengthwise.compare.virtual import Draw, VirtualSession, run_virtual_plan
from lengthwise.errors import InputError
from lengthwise.measure.results import ResultsWriter
from lengthwise.measure.run_info import VIRTUAL, RunInfo, describe_run
from lengthwise.predict.load import load_predictor
from lengthwise.predict.tokenizer import REFERENCE, PromptTokenizer, load_tokenizer
from lengthwise.workload.dataset import TRAIN, Dataset

DEFAULT_MODEL = "llama-3-8b"
_LEARNT_FROM = 1500
_PLACES = 512  # for paused requests, in the worker


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
    """

    plan: Plan
    machine: Machine
    name: str
    tokenizer: PromptTokenizer
    count: int
    out: Path
    progress: Progress


def refuse_options(given: Mapping[str, object], *, because: str) -> None:
    """Raise an InputError if any of these options was given.

    Args:
        given: the options' values by name; None, False and empty lists were not given.
        because: why they cannot be.
    """
    for name, value in given.items():
        if value not in (None, False, []):
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


def predictor_tokenizer(predictor: str | None) -> PromptTokenizer:
    """The tokenizer whose tokens a trained predictor reads; the built-in one for all others.

    Raises:
        InputError: the predictor or its tokenizer cannot be loaded.
    """
    name = REFERENCE
    if predictor is not None and Path(predictor).is_dir():
        metadata = getattr(load_predictor(predictor), "metadata", None)
        name = REFERENCE if metadata is None else metadata.tokenizer
    return load_tokenizer(name)


def learn_from_corpus(
    folder: Path, tokenizer: PromptTokenizer, seed: int, progress: Progress
) -> str:
    """Train a predictor on the built-in model's training prompts; what it learnt from, in words."""
    table = corpus_table(tokenizer, _LEARNT_FROM, TRAIN, seed)
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
    if table.rejected:
        notes.append(f"{len(table.rejected)} malformed rows were left out")
    for line in (describe_requests(first.requests), *notes):
        progress.note(line)
    machine, name = bench.machine, bench.name
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
        ),
    )
    writer = ResultsWriter(bench.out, run)
    run_virtual_plan(plan, VirtualSession(machine.cost, engine, bench.out), draw, writer, progress)
