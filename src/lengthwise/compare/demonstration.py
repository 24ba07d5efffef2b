"""The demo: a predictor learnt on the spot, and four policies compared, exactly and then live.

Part one: vLLM's own engine runs in virtual time, at the pace of a GPU. The policies serve prompts
that the predictor has not seen, below, at and above capacity and all at once.

Part two: a burst of them is answered live beside its exact twin, for the same requests. The live
side is vLLM's whole OpenAI server over real HTTP, with an emulated executor of the same pace, which
sleeps for each step; the twin is vLLM's engine core alone, whose clock is moved by the same steps.
What differs between them is the front end, the client and how punctually this machine does its
work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.own_answers import corpus_table, held_out_tau, learn
from lengthwise.compare.progress import Progress
from lengthwise.compare.rounds import (
    Plan,
    choose_requests,
    describe_requests,
    describe_round,
    keeping,
    records_of,
    summary_line,
)
from lengthwise.compare.session import Observed, Starting, start_session
from lengthwise.compare.specs import Burst, Capacity, Offer, parse_policies
from lengthwise.compare.virtual import Draw, VirtualSession, run_virtual_plan
from lengthwise.errors import LengthwiseError
from lengthwise.measure.results import LIVE, VIRTUAL, ResultsWriter, RunInfo, describe_run
from lengthwise.measure.twins import LIVE_FOLDER, TWIN_FOLDER
from lengthwise.predict.tokenizer import REFERENCE, PromptTokenizer, load_tokenizer
from lengthwise.settings import Settings
from lengthwise.simulate.engine import WORK, EngineSettings, StepCost
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
_WARM_UP_TOKENS = 8

Serve = Callable[[str, Settings], Observed]


def choose_burst(
    requests: Sequence[ReplayRequest], count: int, *, max_model_len: int
) -> list[ReplayRequest]:
    """The requests of a burst that both sides serve alike.

    Their prompts are as long as their text is, since that is what travels; their answers end by
    themselves, where an emulated server is told.

    Args:
        requests: the first ones are taken.
        count: how many.
        max_model_len: the context in tokens.

    Raises:
        LengthwiseError: none fits.
    """
    longest = max(request.answer_tokens for request in requests)
    chosen = [
        replace(
            request,
            output_tokens=None,
            known_tokens=request.answer_tokens,
            counted_tokens=None,
        )
        for request in requests
        if len(request.prompt_ids) + longest < max_model_len
    ]
    if not chosen:
        raise LengthwiseError(f"no prompt fits a context of {max_model_len:,} tokens")
    return chosen[:count]


def run_twins(
    policies: Mapping[str, Settings],
    starting: Starting,
    exact: VirtualSession,
    requests: Sequence[ReplayRequest],
    out: Path,
    run: RunInfo,
    progress: Progress,
) -> None:
    """Serve the burst under each policy, in virtual time and then live, and save the rounds.

    Args:
        policies: settings by the label that tables show.
        starting: the emulated server.
        exact: the same engine in virtual time.
        requests: from `choose_burst`.
        out: the folder of the run that the twins belong to; each side is kept in one below.
        run: what is said of that run.
        progress: told what happens.

    Raises:
        LengthwiseError: the server did not come up, ended, or answered nothing.
    """
    at_once = Offer.at_once(len(requests))
    run = replace(run, requests=len(requests))

    def in_virtual_time(name: str, settings: Settings) -> Observed:
        return exact.run_round(name, settings, requests, at_once)

    writer = ResultsWriter(out / TWIN_FOLDER, run)
    _serve(policies, requests, in_virtual_time, writer, VIRTUAL, exact.cost, progress)
    progress.stage("waiting for the emulated server")
    session = starting.wait(progress)
    limit = 1 + max(request.answer_tokens for request in requests)

    def live(name: str, settings: Settings) -> Observed:
        return session.run_round(
            name,
            settings,
            requests,
            at_once,
            max_tokens=limit,
            progress=lambda answered, failed: progress.advance(answered),
        )

    progress.stage("warming the server up")
    short = [replace(request, known_tokens=_WARM_UP_TOKENS) for request in requests]
    for settings in policies.values():
        session.run_round("warm-up", settings, short, at_once)
    run = replace(run, engine=LIVE, engine_note="", server={"arguments": session.server_arguments})
    writer = ResultsWriter(out / LIVE_FOLDER, run)
    _serve(policies, requests, live, writer, LIVE, exact.cost, progress)


def _serve(
    policies: Mapping[str, Settings],
    requests: Sequence[ReplayRequest],
    serve: Serve,
    writer: ResultsWriter,
    engine: str,
    cost: StepCost,
    progress: Progress,
) -> None:
    """A round of each policy."""
    load = Burst(len(requests))
    with keeping(writer, len(policies)):
        for number, (label, settings) in enumerate(policies.items()):
            progress.stage(f"{label}, {engine}: {len(requests)} at once", len(requests))
            started = datetime.now(UTC)
            observed = serve(f"{number:03d}", settings)
            info = describe_round(number, label, settings, load, 0, started, observed, requests)
            if engine == LIVE:
                info = replace(info, remarks=(_punctuality(observed, cost),))
            writer.append(info, records_of(info, observed))
            progress.note(summary_line(info, observed, len(policies)))


def _punctuality(observed: Observed, cost: StepCost) -> str:
    """How late a live round's requests and steps were, in a line."""
    seen = (request.get("arrival_s") for request in observed.engine.requests.values())
    arrivals = [time_s for time_s in seen if isinstance(time_s, float)]
    steps = observed.engine.steps
    timed = np.isfinite(steps["duration_s"])
    work = np.stack([steps[name][timed] for name in WORK], axis=1)
    share = float(steps["duration_s"][timed].sum() / cost.seconds(work).sum())
    return (
        f"requests reached the scheduler over {max(arrivals) - min(arrivals):.2f} s; steps took "
        f"{100 * share:.1f} % of the time that was asked of them"
    )


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
        if isinstance(error.__cause__, KeyboardInterrupt):
            raise error.__cause__ from None  # whoever stops it stops all of it
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
    if data is not None:
        for line in (*learnt.account(), *served.account()):
            progress.note(line)
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
