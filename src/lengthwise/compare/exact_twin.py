"""A burst answered live beside its exact twin: real HTTP, and virtual time, for the same requests.

The live side is vLLM's whole OpenAI server with an emulated executor, which sleeps for each step;
the twin is vLLM's engine core alone, whose clock is moved by the same steps. What differs between
them is the front end, the client and how punctually this machine does its work.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.progress import Progress
from lengthwise.compare.round_records import describe_round, records_of, summary_line
from lengthwise.compare.rounds import keeping
from lengthwise.compare.session import Observed, Starting
from lengthwise.compare.specs import Burst, Offer
from lengthwise.compare.virtual import VirtualSession
from lengthwise.errors import LengthwiseError
from lengthwise.measure.results import ResultsWriter
from lengthwise.measure.run_info import LIVE, VIRTUAL, RunInfo
from lengthwise.measure.twins import LIVE_FOLDER, TWIN_FOLDER
from lengthwise.settings import Settings
from lengthwise.simulate.step_cost import WORK, StepCost

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
