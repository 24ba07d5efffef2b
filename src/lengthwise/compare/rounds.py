"""The comparison itself: the same requests, the same arrivals, one policy after the other.

The requests are chosen from a table of prompts and answer lengths. A round is a line for the
terminal, and what is kept of it and of each of its requests.

Machines drift, so policies take turns: A B C in one repeat, C B A in the next. Every round is saved
as soon as it ends.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from lengthwise.advise.calibrate import fit_tokens
from lengthwise.compare.client import Answer, ReplayRequest
from lengthwise.compare.progress import Progress
from lengthwise.compare.session import Observed, Session
from lengthwise.compare.specs import Burst, Capacity, Clients, Load, Offer, offer_of
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.measure.results import RequestRecord, ResultsWriter, RoundInfo, describe_run
from lengthwise.predict.extract import ChatTokenizer, encode_prompts
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.settings import Settings
from lengthwise.simulate.engine import StepCost
from lengthwise.workload.dataset import Dataset

_ENCODED_AT_ONCE = 512
_WARM_UP_REQUESTS = 48
_CALIBRATION_REQUESTS = 320


def choose_requests(
    table: Dataset, tokenizer: ChatTokenizer, *, count: int, max_model_len: int, seed: int
) -> tuple[list[ReplayRequest], list[str]]:
    """Choose requests at random, those that fit the model's context and have an answer.

    Args:
        table: prompts and answer lengths in tokens.
        tokenizer: of the served model; prediction and serving see its ids.
        count: how many; all that fit where the table has fewer.
        max_model_len: the context in tokens; prompt and answer must fit together.
        seed: same seed, same requests.

    Returns:
        The requests, numbered from 0, and notes on what was left out, for the reader of the
        results.

    Raises:
        InputError: no row of the table fits.
    """
    chosen: list[ReplayRequest] = []
    too_long = empty = 0
    order = np.random.default_rng(seed).permutation(len(table.prompts))
    for start in range(0, len(order), _ENCODED_AT_ONCE):
        rows = order[start : start + _ENCODED_AT_ONCE]
        encoded = encode_prompts(table, tokenizer, rows.tolist())
        for row, prompt_ids in zip(rows.tolist(), encoded, strict=True):
            if len(chosen) == count:
                break
            counted = None if table.prompt_tokens is None else int(table.prompt_tokens[row])
            request = ReplayRequest(
                len(chosen), prompt_ids, int(table.lengths[row]), counted_tokens=counted
            )
            if request.answer_tokens < 1:
                empty += 1
            elif request.prompt_tokens + request.answer_tokens > max_model_len:
                too_long += 1
            else:
                chosen.append(request)
        if len(chosen) == count:
            break
    if not chosen:
        raise InputError(
            f"none of the {len(table.prompts):,} rows of {table.name} fits: prompt and answer "
            f"together may have {max_model_len:,} tokens (vLLM's --max-model-len), and the answer "
            "must have at least one"
        )
    notes = []
    if too_long:
        notes.append(
            f"{too_long} of {len(chosen) + too_long + empty} rows were left out: longer than the "
            f"model's context of {max_model_len:,} tokens"
        )
    if empty:
        notes.append(f"{empty} rows were left out: an answer of 0 tokens")
    if len(chosen) < count:
        notes.append(f"{count:,} requests were asked for, {len(chosen):,} rows fit")
    if table.rejected:
        notes.append(f"{len(table.rejected)} malformed rows were left out")
    return chosen, notes


def describe_requests(requests: Sequence[ReplayRequest]) -> str:
    """One line: how many requests, and how long."""
    prompts = np.array([request.prompt_tokens for request in requests])
    answers = np.array([request.answer_tokens for request in requests])
    return (
        f"{len(requests):,} requests: prompts of {prompts.mean():.0f} tokens on average, answers "
        f"of {answers.mean():.0f} (median {np.median(answers):.0f}, "
        f"p99 {np.percentile(answers, 99):.0f}, longest {answers.max()})"
    )


def describe_round(
    number: int,
    label: str,
    settings: Settings,
    load: Load,
    repeat: int,
    started: datetime | None,
    observed: Observed,
    requests: Sequence[ReplayRequest],
) -> RoundInfo:
    """What the saved records say of a round besides its requests."""
    require_answers(observed)
    capacity = observed.capacity
    sent = [answer.sent_s for answer in observed.replay.answers if math.isfinite(answer.sent_s)]
    offered = None
    if capacity and not isinstance(load, Burst | Clients) and max(sent) > 0:
        offered = sum(map(work_of, requests)) / max(sent) / capacity
    errors = [answer.error for answer in observed.replay.answers if answer.error]
    active = settings.model_dump(exclude={"record", "metrics_port"})
    slots = observed.engine.limits.get("slots")
    if isinstance(slots, int):  # what "auto" came to: another version may choose otherwise
        active |= settings.bounds_for(slots)
    return RoundInfo(
        round=number,
        policy=label,
        load=load.label,
        repeat=repeat,
        offered_load=offered,
        capacity_tokens_per_s=capacity,
        started=None if started is None else started.isoformat(timespec="seconds"),
        settings=active,
        counters=observed.counters,
        flags=(f"an error: {errors[0]}",) if errors else (),
    )


def records_of(info: RoundInfo, observed: Observed) -> list[RequestRecord]:
    """One record per request: the client's times and what the engine knew of it."""
    return [
        _record(info, answer, observed.engine.requests.get(answer.request, {}))
        for answer in observed.replay.answers
    ]


def summary_line(info: RoundInfo, observed: Observed, rounds: int) -> str:
    """One line for the terminal when a round has ended."""
    latencies = [
        answer.finish_s - answer.sent_s
        for answer in observed.replay.answers
        if answer.error is None
    ]
    really = "" if info.offered_load is None else f" (really {info.offered_load:.2f})"
    flags = "".join(f"; {flag}" for flag in info.flags)
    return (
        f"{info.round + 1:>3}/{rounds}  {info.policy:<12} load {info.load}{really}: "
        f"mean latency {np.mean(latencies):.2f} s, {info.counters.get('preemptions', 0)} "
        f"preemptions, capacity {info.capacity_tokens_per_s or math.nan:,.0f} tokens/s{flags}"
    )


def _record(info: RoundInfo, answer: Answer, engine: Mapping[str, object]) -> RequestRecord:
    return RequestRecord(
        round=info.round,
        policy=info.policy,
        load=info.load,
        request=answer.request,
        scheduled_s=answer.scheduled_s,
        sent_s=answer.sent_s,
        first_token_s=answer.first_token_s,
        finish_s=answer.finish_s,
        token_times=np.array(answer.token_times, dtype=np.float32),
        prompt_tokens=answer.prompt_tokens,
        output_tokens=answer.output_tokens,
        expected_tokens=_number(engine.get("expected_tokens")),
        queue_s=_number(engine.get("queue_s")),
        preemptions=_count(engine.get("preemptions")),
        overtaken=_count(engine.get("overtaken")),
        error=answer.error,
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _count(value: object) -> int:
    return int(value) if isinstance(value, int | float) else 0


def require_answers(observed: Observed) -> None:
    """Raise LengthwiseError where no request of a round was answered."""
    answers = observed.replay.answers
    if all(answer.error is not None for answer in answers):
        raise LengthwiseError(f"no request was answered: {answers[0].error}")


def work_of(request: ReplayRequest) -> int:
    """Tokens that the engine must get done for a request."""
    return request.prompt_tokens + request.answer_tokens


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
    cost = fit_tokens(observed.engine.steps, observed.engine.lag)
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
