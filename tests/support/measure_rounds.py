"""Small rounds with known figures, for the tests of `lengthwise.measure`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lengthwise.measure import RequestRecord, ResultsWriter, RoundInfo, RunInfo

RUN = RunInfo(
    command="lengthwise bench prompts.parquet",
    started="2026-11-20T10:00:00+00:00",
    model="reference",
    dataset="prompts <b>&</b>",
    requests=3,
)


def answered(
    request: int,
    token_times: Sequence[float],
    *,
    sent_s: float = 0.0,
    policy: str = "fcfs",
    load: str = "burst",
    round: int = 0,
) -> RequestRecord:
    """A completed request whose tokens came one by one, at times in s from when it was sent."""
    return RequestRecord(
        round=round,
        policy=policy,
        load=load,
        request=request,
        scheduled_s=sent_s,
        sent_s=sent_s,
        first_token_s=sent_s + token_times[0],
        finish_s=sent_s + token_times[-1],
        token_times=np.array(token_times, dtype=np.float32),
        prompt_tokens=10,
        output_tokens=len(token_times),
    )


def failed(request: int, error: str = "HTTP 500") -> RequestRecord:
    """A request that was sent and never answered."""
    return RequestRecord(0, "fcfs", "burst", request, scheduled_s=0.0, sent_s=0.0, error=error)


def append_round(
    writer: ResultsWriter,
    number: int,
    policy: str,
    latencies: Sequence[float],
    *,
    load: str = "burst",
    repeat: int = 0,
    capacity: float | None = 1000.0,
    offered: float | None = None,
) -> None:
    """Write a round of answers of two tokens each, with the latencies given in s."""
    rows = [
        answered(index, [latency / 2, latency], policy=policy, load=load, round=number)
        for index, latency in enumerate(latencies)
    ]
    info = RoundInfo(
        number, policy, load, repeat, offered_load=offered, capacity_tokens_per_s=capacity
    )
    writer.append(info, rows)


def write_run(folder: Path) -> None:
    """A run of two repeats: ltr is 2× and 4× faster than fcfs, the oracle 4× and 8×."""
    writer = ResultsWriter(folder, RUN)
    number = 0
    for repeat, means in enumerate(((8.0, 4.0, 2.0), (8.0, 2.0, 1.0))):
        for policy, mean in zip(("fcfs", "ltr", "oracle"), means, strict=True):
            latencies = [mean / 2, mean, 3 * mean / 2]
            append_round(writer, number, policy, latencies, repeat=repeat)
            number += 1
