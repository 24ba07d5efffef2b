"""What a step of vLLM's plan does, told from the plan alone, as a worker sees it."""

from __future__ import annotations

from typing import Any, NamedTuple


class Work(NamedTuple):
    """The work of one step, in the terms of `simulate.step_cost.WORK`."""

    prefill_tokens: int
    decode_tokens: int
    kv_tokens: int
    requests: int
    attention_tokens: float


class Batch:
    """The requests that a worker knows: how long their prompts are.

    A worker is told a prompt once, when its request first runs.
    """

    def __init__(self) -> None:
        self._prompt_tokens: dict[str, int] = {}

    def take(self, output: Any) -> tuple[Work, list[str], list[bool], list[int]]:
        """Take a plan up.

        Args:
            output: vLLM's SchedulerOutput.

        Returns:
            Its work; its requests in order; of each whether it gets its next token (all that is
            known of it is computed), and how many of its tokens are computed in the end.
        """
        for request_id in output.finished_req_ids:
            self._prompt_tokens.pop(request_id, None)
        scheduled = output.num_scheduled_tokens
        new, cached = output.scheduled_new_reqs, output.scheduled_cached_reqs
        started = {request.req_id for request in new}
        started.update(cached.resumed_req_ids)
        names: list[str] = []
        ends: list[int] = []
        complete: list[bool] = []
        for request in new:
            # The second model runner gets a resumed request as a new one, with its whole text.
            tokens = getattr(request, "prefill_token_ids", None) or request.prompt_token_ids
            self._prompt_tokens[request.req_id] = len(request.prompt_token_ids)
            end = request.num_computed_tokens + scheduled[request.req_id]
            names.append(request.req_id)
            ends.append(end)
            complete.append(end >= len(tokens))
        for name, computed, answered in zip(
            cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True
        ):
            end = computed + scheduled[name]
            names.append(name)
            ends.append(end)
            complete.append(end >= self._prompt_tokens[name] + answered)
        prefill = decode = 0
        attention = 0.0
        for name, end in zip(names, ends, strict=True):
            tokens = scheduled[name]
            if tokens > 1 or name in started:
                prefill += tokens
                attention += tokens * (end - 0.5 * (tokens - 1))
            else:
                decode += 1
        return Work(prefill, decode, sum(ends), len(names), attention), names, complete, ends
