"""The demo: a predictor learnt on the spot, and four policies compared, exactly and then live.

Part one: vLLM's own engine runs in virtual time, at the pace of a GPU. The policies serve prompts
that the predictor has not seen, below, at and above capacity and all at once. Part two: an emulated
server of the same pace answers a burst of them over HTTP, beside its exact twin.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from lengthwise.compare.chosen_requests import choose_requests, describe_requests
from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.exact_twin import choose_burst, run_twins
from lengthwise.compare.own_answers import corpus_table, held_out_tau, learn
from lengthwise.compare.progress import Progress
from lengthwise.compare.rounds import Plan
from lengthwise.compare.session import Starting, start_session
from lengthwise.compare.specs import Burst, Capacity, parse_policies
from lengthwise.compare.virtual import Draw, VirtualSession, run_virtual_plan
from lengthwise.errors import LengthwiseError
from lengthwise.measure.results import ResultsWriter
from lengthwise.measure.run_info import VIRTUAL, RunInfo, describe_run
from lengthwise.measure.twins import LIVE_FOLDER, TWIN_FOLDER
from lengthwise.predict.tokenizer import REFERENCE, PromptTokenizer, load_tokenizer
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.presets import Preset
from lengthwise.workload.dataset import TEST, TRAIN, Dataset, load_dataset

POLICIES = "fcfs,ltr,srpt,oracle"
LIVE_POLICIES = ("fcfs", "srpt")
LOADS = (Capacity(0.9), Capacity(1.05), Capacity(1.2), Burst())
SLOTS = 64  # of the 256 that an A100 would be given: enough for a queue of a few hundred requests
REQUESTS = 800
LIVE_REQUESTS = 256
PREDICTOR_FOLDER = "predictor"

_LEARNT_FROM = 4000


def run_demo(
    out: Path,
    preset: Preset,
    *,
    slots: int = SLOTS,
    data: Path | None,
    seed: int,
    progress: Progress,
) -> None:
    """Learn and compare; the results are left in `out`.

    Where the emulated server cannot run, a line says why, and part one is what there is.

    Args:
        out: folder for the results and, in `predictor/`, the predictor.
        preset: the GPU and the model whose time is kept.
        slots: of the engine.
        data: a table of prompts and answer lengths, split into train and test; None for the
            built-in model's prompts.
        seed: of prompts, training and arrivals.
        progress: told what happens.

    Raises:
        InputError: the data cannot be used.
        LengthwiseError: something failed on the way.
    """
    engine = replace(preset.engine, slots=slots, lag=1)
    starting: Starting | None = None
    with ExitStack() as server:
        with _or_leave_out(progress):
            # It takes half a minute to come up, while part one runs.
            starting = server.enter_context(
                start_session(
                    REFERENCE,
                    out / LIVE_FOLDER,
                    flags=["--max-num-seqs", str(slots)],
                    port=None,
                    emulate=preset,
                )
            )
        requests, run = _learn(out, preset, engine, data, seed, progress)
        plan = Plan(
            parse_policies([POLICIES], str((out / PREDICTOR_FOLDER).absolute())),
            LOADS,
            repeats=1,
            seed=seed,
        )
        exact = VirtualSession(preset.cost, engine, out)
        run_virtual_plan(plan, exact, lambda _: Draw(requests), ResultsWriter(out, run), progress)
        if starting is not None:
            with _or_leave_out(progress):
                run_twins(
                    {label: plan.policies[label] for label in LIVE_POLICIES},
                    starting,
                    VirtualSession(preset.cost, engine, out / TWIN_FOLDER),
                    choose_burst(requests, LIVE_REQUESTS, max_model_len=preset.model.context),
                    out,
                    run,
                    progress,
                )


@contextmanager
def _or_leave_out(progress: Progress) -> Iterator[None]:
    """Where part two fails, say so in a line: part one stands without it."""
    try:
        yield
    except (LengthwiseError, OSError) as error:
        progress.note(f"the live part is left out: {error}")


def _learn(
    out: Path,
    preset: Preset,
    engine: EngineSettings,
    data: Path | None,
    seed: int,
    progress: Progress,
) -> tuple[Sequence[ReplayRequest], RunInfo]:
    """Train the predictor; the requests to compare, and what is said of the run."""
    tokenizer = load_tokenizer(REFERENCE)
    progress.stage("reading prompts")
    learnt, served = _tables(tokenizer, data, seed)
    requests, notes = choose_requests(
        served, tokenizer, count=REQUESTS, max_model_len=preset.model.context, seed=seed
    )
    progress.note(f"{served.name}: {describe_requests(requests)}")
    predictor = learn(learnt, tokenizer, out / PREDICTOR_FOLDER, seed, progress)
    notes.append(
        f"The predictor learnt from {len(learnt.prompts):,} other prompts; its Kendall tau on the "
        f"requests compared is {held_out_tau(predictor, requests):.2f}."
    )
    progress.note(notes[-1])
    run = describe_run(
        model=preset.name,
        dataset=f"{served.name} ({served.selection})",
        requests=len(requests),
        server_arguments=(),
        notes=notes,
    )
    return requests, replace(
        run,
        engine=VIRTUAL,
        engine_note=(
            f"{preset.name}: {engine.slots} slots, {engine.token_budget:,} tokens a step. Prompt "
            "tokens: counted by the built-in tokenizer."
        ),
        server={"slots": engine.slots, "step_costs": preset.cost.source},
    )


def _tables(tokenizer: PromptTokenizer, data: Path | None, seed: int) -> tuple[Dataset, Dataset]:
    """What is learnt from, and what is served."""
    if data is None:
        return (
            corpus_table(tokenizer, _LEARNT_FROM, TRAIN, seed),
            corpus_table(tokenizer, REQUESTS, TEST, seed),
        )
    count = tokenizer.count_tokens
    return (
        load_dataset(data, split="train", limit=_LEARNT_FROM, count_tokens=count),
        load_dataset(data, split="test", count_tokens=count),
    )
