"""What a log or a server's counters show of its queue, and of what limits it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.measure.server_metrics import ServerSample
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.workload.trace import Trace

Floats = NDArray[np.float64]

SCARCE: Final = 0.05  #: of the KV blocks: fewer free ones keep a prompt out

_QUEUES: Final = 0.05  # of the mean latency spent queueing: less, and no order can help much


@dataclass(frozen=True)
class Signs:
    """What a log or a server's counters show; None where they do not say.

    Attributes:
        requests: finished ones.
        slots: requests that can run at once.
        waiting_share: of the time, with at least one request waiting.
        mean_queue_s: from arrival to the first step.
        mean_latency_s: from arrival to the last token.
        spread: of the answers' lengths, standard deviation over mean.
        load: work offered over what the engine can do in the time; above 1 the queue grows.
        slots_taken: of the time with a queue, with all slots taken.
        memory_scarce: of the time with a queue, with slots left but hardly any KV block.
        kv_use: the largest share of KV blocks in use.
        memory_preemptions: requests put back because KV memory ran out.
        cached_share: of the prompts' tokens, found in the prefix cache.
    """

    requests: int
    slots: int | None = None
    waiting_share: float | None = None
    mean_queue_s: float | None = None
    mean_latency_s: float | None = None
    spread: float | None = None
    load: float | None = None
    slots_taken: float | None = None
    memory_scarce: float | None = None
    kv_use: float | None = None
    memory_preemptions: int | None = None
    cached_share: float | None = None

    @property
    def queue_share(self) -> float | None:
        """Of the mean latency, spent queueing."""
        if self.mean_queue_s is None or not self.mean_latency_s:
            return None
        return min(self.mean_queue_s / self.mean_latency_s, 1.0)

    @property
    def queues(self) -> bool:
        """Whether requests wait enough for their order to matter."""
        share = self.queue_share if self.queue_share is not None else self.waiting_share
        return share is not None and share >= _QUEUES


def signs_of_log(
    trace: Trace,
    queue_s: Floats,
    cached_tokens: Floats,
    steps: Mapping[str, Floats],
    engine: EngineSettings,
) -> Signs:
    """What the scheduler's record shows.

    The mean latency is by Little's law: requests in the system, on average over time, over the rate
    at which they finish. The record does not say when each one ended.

    Args:
        trace: the requests, but for those that ended before their first token.
        queue_s: of all of them, shape [n]; NaN for those that never ran.
        cached_tokens: of each one's prompt, shape [n]; NaN where it was not recorded.
        steps: columns of equal length as in `steps.jsonl`; empty without a record of steps.
        engine: its limits.
    """
    known = np.isfinite(cached_tokens)
    prompts = float(trace.prompt_tokens.mean()) * int(known.sum())
    signs = Signs(
        requests=len(trace),
        mean_queue_s=_mean(queue_s),
        spread=float(trace.output_tokens.std() / trace.output_tokens.mean()),
        cached_share=float(cached_tokens[known].sum()) / prompts if known.any() else None,
    )
    seconds = np.nan_to_num(steps["duration_s"])
    span = float(np.maximum(np.diff(steps["t"]), 0.0).sum())
    if len(seconds) == 0 or span == 0.0 or seconds.sum() == 0.0:
        return signs
    running, waiting, free = (steps[name] for name in ("running", "waiting", "free_blocks"))
    blocks = engine.kv_blocks or free.max()
    queued = (waiting > 0) * seconds
    full = running >= engine.slots
    scarce = ~full & (free < SCARCE * blocks)
    wait_s = float(queued.sum())
    return replace(
        signs,
        slots=engine.slots,
        waiting_share=min(wait_s / span, 1.0),
        mean_latency_s=float(((running + waiting) * seconds).sum()) / len(queue_s),
        slots_taken=float(queued[full].sum()) / wait_s if wait_s else None,
        memory_scarce=float(queued[scarce].sum()) / wait_s if wait_s else None,
        kv_use=float(1.0 - free.min() / blocks) if blocks else None,
    )


def signs_of_server(samples: Sequence[ServerSample]) -> Signs:
    """What a server's counters show: times since it started, the rest while it was watched."""
    last = samples[-1]
    waits = np.array([each.waiting > 0 for each in samples])
    kv_use = float(np.max([each.kv_use for each in samples]))
    return Signs(
        requests=int(last.answer_tokens.count or last.queue_s.count),
        waiting_share=float(waits.mean()),
        mean_queue_s=_finite(last.queue_s.mean),
        mean_latency_s=_finite(last.latency_s.mean),
        spread=_finite(last.answer_tokens.spread),
        kv_use=_finite(kv_use),
        memory_scarce=float(np.mean([each.kv_use > 1.0 - SCARCE for each in samples]))
        if np.isfinite(kv_use)
        else None,
        memory_preemptions=int(last.preemptions),
    )


def recorded_limits(steps: Mapping[str, Floats], limits: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's limits, as recorded, or the most that it was seen to do.

    Args:
        steps: columns as in `steps.jsonl`.
        limits: by the names of `EngineSettings`; empty in older records.
    """
    if limits or len(steps["running"]) == 0:
        return dict(limits)
    slots = max(int(np.nanmax(steps["running"])), 1)
    tokens = int(np.nanmax(steps["prefill_tokens"] + steps["decode_tokens"]))
    seen = {"slots": slots, "token_budget": max(EngineSettings.token_budget, slots, tokens)}
    free = steps["free_blocks"]
    return {**seen, "kv_blocks": int(np.nanmax(free))} if np.isfinite(free).any() else seen


def _mean(values: Floats) -> float | None:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else None


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
