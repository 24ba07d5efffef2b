"""What is read of vLLM's requests, and of what their clients sent along."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from lengthwise.predict.prediction import (
    FACTS,
    LORA,
    REQUEST_ID,
    TENANT,
    TTFT_DEADLINE_MS,
    EmbeddedPrompt,
    Prompt,
    deadline_ms,
)
from lengthwise.workload.conversation import NOTHING, Facts

_MOST_PRIORITY: Final = 2**60
_MOST_TOKENS: Final = 2**31 - 1  # what a column of the table holds
_LONGEST_NAME: Final = 128  # characters of a name that a client chose


def priority_class(request: Any) -> int:
    """A request's priority, cut to what the order's key holds: vLLM takes integers of any size."""
    return int(max(-_MOST_PRIORITY, min(_MOST_PRIORITY, request.priority)))


def most_tokens(scheduler: Any, request: Any) -> int:
    """The tokens after which a caller has a request's answer cut; 0 where it does not.

    With `ignore_eos` every answer is as long as that: a replay, whose lengths only an oracle knows.
    vLLM gives a request without a limit all that the context has room for: that is nobody's word.
    """
    sampling = request.sampling_params
    if sampling is None or sampling.ignore_eos:
        return 0
    if request.num_prompt_tokens + request.max_tokens >= scheduler.max_model_len:
        return 0
    return int(min(max(request.max_tokens, 1), _MOST_TOKENS))


def adapter(request: Any) -> int:
    """The number of a request's LoRA adapter; 0 for none."""
    return int(request.lora_request.lora_int_id) if request.lora_request else 0


def prompt_of(request: Any, most_tokens: int = 0) -> Prompt:
    """All that a predictor may see of a vLLM request.

    Args:
        request: vLLM's.
        most_tokens: where its answer is cut, see `most_tokens`.
    """
    sampling, hints = request.sampling_params, _hints(request)
    facts = Facts(most_tokens=most_tokens, attachments=len(request.mm_features))
    if sampling is not None:
        facts = facts._replace(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            structured=sampling.structured_outputs is not None,
        )
    if facts != NOTHING:
        hints = {**hints, FACTS: facts}
    if request.lora_request is not None:
        hints = {**hints, LORA: request.lora_request.lora_name}
    token_ids = request.prompt_token_ids
    if token_ids is None:
        token_ids = EmbeddedPrompt(request.num_prompt_tokens)
    return Prompt(token_ids, hints)


def _hints(request: Any) -> Mapping[str, object]:
    """What its client sent along in `vllm_xargs`."""
    sampling = request.sampling_params
    return (sampling.extra_args if sampling is not None else None) or {}


def deadline_of(request: Any) -> float:
    """Seconds from its arrival to when a request's first token is due; 0 where it names no time."""
    return (deadline_ms(_hints(request).get(TTFT_DEADLINE_MS)) or 0.0) / 1e3


def name_of(request: Any) -> str:
    """What a record calls a request: as its client named it for a replay, or as vLLM does."""
    given = _name(_hints(request).get(REQUEST_ID))
    return str(request.request_id)[:_LONGEST_NAME] if given is None else given


def tenant_of(request: Any) -> str:
    """Whose a request is; "" where it does not say."""
    return _name(_hints(request).get(TENANT)) or ""


def _name(given: object) -> str | None:
    """A name that came with a request: text or a number; None for anything else."""
    named = isinstance(given, str) or (isinstance(given, int) and abs(given) < 2**63)
    return str(given)[:_LONGEST_NAME] if named else None


def prompt_blocks(request: Any, block_size: int) -> list[int]:
    """Names of the full blocks of a request's prompt: equal where content and all before it are.

    None of them where vLLM does not hash blocks of that size.
    """
    hashes = request.block_hashes
    if len(hashes) != request.num_tokens // block_size:
        return []
    full = hashes[: request.num_prompt_tokens // block_size]
    return [int.from_bytes(each[:8], "little") for each in full]


def is_running(request: Any) -> bool:
    """Whether a request holds a slot."""
    return bool(request.status.name == "RUNNING")


def is_ready(request: Any) -> bool:
    """Whether the parent would admit this waiting request, given a slot, memory and room for its
    adapter and in the encoder."""
    status = request.status.name
    if status == "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR":
        # The parent sees that the grammar is there when it comes to this request, not before.
        grammar = _grammar(request)
        return grammar is not None and not isinstance(grammar, Exception)
    if status not in ("WAITING", "PREEMPTED"):
        return False
    return request.num_stale_output_tokens == 0 or bool(request.drop_stale_output)


def has_failed(request: Any) -> bool:
    """Whether a waiting request only has to be told that its grammar does not compile."""
    return request.status.name == "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR" and isinstance(
        _grammar(request), Exception
    )


def _grammar(request: Any) -> Any:
    """What a request's answer has to follow, why there is none, or None while it compiles."""
    wanted = request.structured_output_request
    return None if wanted is None else wanted.grammar


def may_pause(request: Any) -> bool:
    """Whether a running request may be left out of steps now: not in the middle of its prefill,
    not when its last token is on its way, not while older output of it is."""
    return bool(
        not request.is_prefill_chunk
        and request.num_output_tokens > 0
        and not request.has_encoder_inputs
        and request.num_stale_output_tokens == 0
        and not finishes_in_flight(request)
    )


def tokens_this_step(request: Any) -> int:
    """Tokens that a running request will want in the coming step."""
    return int(
        request.num_tokens_with_spec + request.num_output_placeholders - request.num_computed_tokens
    )


def finishes_in_flight(request: Any) -> bool:
    """Whether the tokens already in flight are sure to end the request (asynchronous engines)."""
    placeholders = request.num_output_placeholders
    return bool(
        placeholders > 0
        and request.num_computed_tokens + 2 - placeholders
        >= request.num_prompt_tokens + request.max_tokens
    )
