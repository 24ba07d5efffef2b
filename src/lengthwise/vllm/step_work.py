"""What a planned step does, in the terms that its time is fitted to (simulate/step_cost.py)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any


def prefilling(output: Any) -> Collection[str]:
    """The requests of a step that compute more than their next token.

    Those are the newly admitted, the resumed, and all with more than one token; tokens that a draft
    model proposed do not count.
    """
    scheduled = output.num_scheduled_tokens
    resumed = output.scheduled_cached_reqs.resumed_req_ids
    started = {new.req_id for new in output.scheduled_new_reqs} if output.scheduled_new_reqs else ()
    if resumed:
        started = {*started, *resumed}
    if output.total_num_scheduled_tokens == len(scheduled):
        return started
    drafts = output.scheduled_spec_decode_tokens
    return {
        name
        for name, tokens in scheduled.items()
        if name in started or tokens > 1 + len(drafts.get(name, ()))
    }


def step_tokens(output: Any, prefilling: Collection[str]) -> dict[str, int]:
    """Tokens of a step by kind: all those of prefilling requests, and the others."""
    scheduled = output.num_scheduled_tokens
    prefill = sum(scheduled[name] for name in prefilling) if prefilling else 0
    return {
        "prefill_tokens": prefill,
        "decode_tokens": output.total_num_scheduled_tokens - prefill,
    }


def step_reads(
    output: Any, prefilling: Collection[str], requests: Mapping[str, Any]
) -> dict[str, int]:
    """How large a step's batch is and what it reads; takes a walk through the batch.

    Args:
        output: the planned step.
        prefilling: see `prefilling`.
        requests: vLLM's requests by name, after the step was planned.

    Returns:
        `requests` in the batch; `kv_tokens`, the computed tokens of all of them once the step is
        done; `attention_tokens`, for each prefilled token those that it attends to.
    """
    scheduled = output.num_scheduled_tokens
    computed = {name: requests[name].num_computed_tokens for name in scheduled}
    return {
        "requests": len(scheduled),
        "kv_tokens": sum(computed.values()),
        "attention_tokens": sum(
            # The last attends to all that is computed then, itself included; the first to so many
            # fewer as tokens come after it.
            scheduled[name] * (2 * computed[name] - scheduled[name] + 1) // 2
            for name in prefilling
        ),
    }
