"""What is kept and said of a round."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime

import numpy as np

from lengthwise.compare.client import Answer, ReplayRequest
from lengthwise.compare.session import Observed
from lengthwise.compare.specs import Burst, Clients, Load
from lengthwise.errors import LengthwiseError
from lengthwise.measure.request_record import RequestRecord
from lengthwise.measure.run_info import RoundInfo
from lengthwise.settings import Settings


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
