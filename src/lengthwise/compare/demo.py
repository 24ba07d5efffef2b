"""The demo: a predictor learnt on the spot, and four policies compared exactly.

vLLM's own engine runs in virtual time, at the pace of a GPU. The policies serve prompts that the
predictor has not seen, below, at and above capacity and all at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from lengthwise.compare.corpus_table import corpus_table
from lengthwise.compare.load import Burst, Capacity
from lengthwise.compare.own_answers import held_out_tau, learn
from lengthwise.compare.progress import Progress
from lengthwise.compare.requests import choose_requests, describe_requests
from lengthwise.compare.rounds import Plan
from lengthwise.compare.run_info import describe_run
from lengthwise.compare.specs import parse_policies
from lengthwise.compare.virtual import Draw, VirtualSession, run_virtual_plan
from lengthwise.measure.results import ResultsWriter
from lengthwise.measure.run import VIRTUAL
from lengthwise.predict.tokenizer import REFERENCE, PromptTokenizer, load_tokenizer
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost
from lengthwise.workload.dataset import Dataset, load_dataset
from lengthwise.workload.split import TEST, TRAIN

POLICIES = "fcfs,ltr,srpt,oracle"
LOADS = (Capacity(0.9), Capacity(1.05), Capacity(1.2), Burst())
SLOTS = 64  # of the 256 that an A100 would be given: enough for a queue of a few hundred requests
REQUESTS = 800
PREDICTOR_FOLDER = "predictor"

_LEARNT_FROM = 4000
_CONTEXT = 8192


@dataclass(frozen=True)
class Scale:
    """Whose time the demo keeps.

    Attributes:
        name: of GPU and model.
        cost: of the engine's steps.
        engine: its limits.
    """

    name: str
    cost: StepCost
    engine: EngineSettings


def run_demo(out: Path, scale: Scale, *, data: Path | None, seed: int, progress: Progress) -> None:
    """Learn and compare; the results are left in `out`.

    Args:
        out: folder for the results and, in `predictor/`, the predictor.
        scale: whose time is kept.
        data: a table of prompts and answer lengths, split into train and test; None for the
            built-in model's prompts.
        seed: of prompts, training and arrivals.
        progress: told what happens.

    Raises:
        InputError: the data cannot be used.
        LengthwiseError: something failed on the way.
    """
    tokenizer = load_tokenizer(REFERENCE)
    progress.stage("reading prompts")
    learnt, served = _tables(tokenizer, data, seed)
    requests, notes = choose_requests(
        served, tokenizer, count=REQUESTS, max_model_len=_CONTEXT, seed=seed
    )
    progress.note(f"{served.name}: {describe_requests(requests)}")
    predictor = learn(learnt, tokenizer, out / PREDICTOR_FOLDER, seed, progress)
    notes.append(
        f"The predictor learnt from {len(learnt.prompts):,} other prompts; its Kendall tau on the "
        f"requests compared is {held_out_tau(predictor, requests):.2f}."
    )
    progress.note(notes[-1])
    run = describe_run(
        model=scale.name,
        dataset=f"{served.name} ({served.selection})",
        requests=len(requests),
        server_arguments=(),
        notes=notes,
    )
    run = replace(
        run,
        engine=VIRTUAL,
        engine_note=(
            f"{scale.name}: {scale.engine.slots} slots, {scale.engine.token_budget:,} tokens a "
            "step. Prompt tokens: counted by the built-in tokenizer."
        ),
        server={"slots": scale.engine.slots, "step_costs": scale.cost.source},
    )
    plan = Plan(
        parse_policies([POLICIES], str((out / PREDICTOR_FOLDER).absolute())),
        LOADS,
        repeats=1,
        seed=seed,
    )
    session = VirtualSession(scale.cost, scale.engine, out)
    run_virtual_plan(plan, session, lambda _: Draw(requests), ResultsWriter(out, run), progress)


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
