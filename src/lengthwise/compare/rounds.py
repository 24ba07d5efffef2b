"""The comparison itself: the same requests, the same arrivals, one policy after the other.

Machines drift, so policies take turns: A B C in one repeat, C B A in the next. Every round is saved
as soon as it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lengthwise.advise.calibrate import fit_tokens
from lengthwise.compare.chosen_requests import choose_requests, describe_requests
from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.progress import Progress
from lengthwise.compare.round_records import (
    describe_round,
    records_of,
    require_answers,
    summary_line,
    work_of,
)
from lengthwise.compare.session import Session
from lengthwise.compare.specs import Burst, Capacity, Load, Offer, offer_of
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.measure.results import ResultsWriter
from lengthwise.measure.run_info import describe_run
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.settings import Settings
from lengthwise.simulate.step_cost import StepCost
from lengthwise.workload.dataset import Dataset

_WARM_UP_REQUESTS = 48
_CALIBRATION_REQUESTS = 320


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        policies: settings by the label that tables show, in the order of the first repeat.
        loads: how requests are offered; every policy runs under each.
        repeats: how often everything is run.
        cv: coefficient of variation of random gaps between arrivals; 1 is Poisson.
        seed: arrivals and orders of repeat r follow from seed + r, the same for every policy.
    """

    policies: Mapping[str, Settings]
    loads: Sequence[Load]
    repeats: int
    cv: float = 1.0
    seed: int = 0

    @property
    def rounds(self) -> int:
        """How many rounds that makes."""
        return len(self.policies) * len(self.loads) * self.repeats


def run_plan(
    plan: Plan,
    session: Session,
    requests: Sequence[ReplayRequest],
    writer: ResultsWriter,
    progress: Progress,
) -> None:
    """Calibrate, then run and save every round.

    Raises:
        LengthwiseError: the server ended or no request of a round was answered.
    """
    capacity, cost = calibrate(session, requests, progress)
    work = float(np.mean([work_of(request) for request in requests]))
    number = 0
    for repeat in range(plan.repeats):
        seed = plan.seed + repeat
        order = list(np.random.default_rng(seed).permutation(len(requests)))
        in_order = [requests[index] for index in order] if repeat else list(requests)
        labels = list(plan.policies)[:: -1 if repeat % 2 else 1]
        for load in plan.loads:
            offer = offer_of(
                load,
                len(requests),
                cv=plan.cv,
                seed=seed,
                capacity_requests_per_s=capacity / work,
            )
            for label in labels:
                progress.stage(
                    f"round {number + 1} of {plan.rounds}: {label} at {_words(load)}", len(requests)
                )
                started = datetime.now(UTC)
                observed = session.run_round(
                    f"{number:03d}",
                    plan.policies[label],
                    in_order,
                    offer,
                    # Machines drift, and the clock of the arrivals with them.
                    cost=cost if isinstance(load, Capacity) else None,
                    progress=_advance(progress),
                )
                info = describe_round(
                    number,
                    label,
                    plan.policies[label],
                    load,
                    repeat,
                    started,
                    observed,
                    in_order,
                )
                writer.append(info, records_of(info, observed))
                progress.note(summary_line(info, observed, plan.rounds))
                number += 1


def run_table(
    plan: Plan,
    session: Session,
    table: Dataset,
    tokenizer: PromptTokenizer,
    out: Path,
    *,
    model: str,
    count: int,
    progress: Progress,
) -> None:
    """Run the plan on prompts of a table, and leave the results in a folder.

    Args:
        plan: what is compared.
        session: the server.
        table: prompts, and the lengths that their answers are given.
        tokenizer: of the served model.
        out: folder for the results.
        model: as the user named it.
        count: requests in a round.
        progress: told what happens.

    Raises:
        LengthwiseError: the run was stopped or failed; the message says what is left.
    """
    chosen, notes = choose_requests(
        table, tokenizer, count=count, max_model_len=session.max_model_len, seed=plan.seed
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
    writer = ResultsWriter(out, run)
    with keeping(writer, plan.rounds):
        run_plan(plan, session, chosen, writer, progress)


@contextmanager
def keeping(writer: ResultsWriter, rounds: int) -> Iterator[None]:
    """Where the rounds inside are stopped or fail, say what is kept of them.

    Args:
        writer: keeps them.
        rounds: how many were planned.

    Raises:
        InputError: what was asked for is wrong, and no round is kept.
        LengthwiseError: the run was stopped or failed; the message says what is left.
    """
    try:
        yield
    except (KeyboardInterrupt, LengthwiseError) as error:
        if isinstance(error, InputError) and not _finished(writer.folder):
            raise
        reason = "stopped" if isinstance(error, KeyboardInterrupt) else str(error)
        raise LengthwiseError(f"{reason}: {_kept(writer.folder, rounds)}") from error


def calibrate(
    session: Session, requests: Sequence[ReplayRequest], progress: Progress
) -> tuple[float, StepCost]:
    """Measure how fast the engine is.

    Part of the requests runs in a burst under fcfs, after a short warm-up.

    Returns:
        The capacity in tokens (prompt and answer) per second with a full batch, and how long the
        steps took.

    Raises:
        LengthwiseError: the engine recorded no step with a full batch.
    """
    progress.stage("warming the engine up", len(requests[:_WARM_UP_REQUESTS]))
    for name, count in (("warm-up", _WARM_UP_REQUESTS), ("calibration", _CALIBRATION_REQUESTS)):
        part = requests[:count]
        if name == "calibration":
            progress.stage("measuring capacity under fcfs", len(part))
        observed = session.run_round(
            name,
            Settings(),
            part,
            Offer.at_once(len(part)),
            progress=_advance(progress),
        )
        require_answers(observed)
    capacity = observed.engine.capacity()
    cost = fit_tokens(observed.engine.steps)
    if capacity is None or cost is None:
        raise LengthwiseError("the engine recorded no step: its capacity is unknown")
    progress.note(f"capacity: {capacity:,.0f} tokens/s with a full batch")
    return capacity, cost


def _finished(folder: Path) -> int:
    return len(list(folder.glob("round-*.parquet")))


def _kept(folder: Path, planned: int) -> str:
    finished = _finished(folder)
    if not finished:
        return "no round was finished"
    return f"{finished} of {planned} rounds are kept, `lengthwise report {folder}` shows them"


def _words(load: Load) -> str:
    return "once (burst)" if isinstance(load, Burst) else f"load {load.label}"


def _advance(progress: Progress) -> Callable[[int, int], None]:
    return lambda answered, failed: progress.advance(answered, f"{failed} failed" if failed else "")
