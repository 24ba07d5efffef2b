"""Which rows of a step's hidden states belong to what: prompts pooled, one row for each decode.

All that is needed stands in vLLM's `SchedulerOutput`, which is the same for every model runner.
Positions count tokens of prompt and answer from 0. The state at position p of a request with P
prompt tokens is a prompt state where p < P, and otherwise that of output token p − P + 1, its age.

Chunked prefill spreads a prompt over steps, so its sum is kept between them. A preempted request
computes its prompt and its answer again: neither is read twice. Prompt tokens found in the prefix
cache have no states; the pool says what share of the prompt it holds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch


class PromptStates(NamedTuple):
    """A prompt whose last token has been computed."""

    request_id: str
    mean: torch.Tensor  #: [layers, hidden] float32, over the tokens that were computed here
    last: torch.Tensor  #: [layers, hidden], of the last token
    share: float  #: of the prompt's tokens that were computed here and not found in the cache


class DecodeStates(NamedTuple):
    """One row for each request that computed an output token; shape [n, layers, hidden]."""

    request_ids: list[str]
    ages: list[int]
    states: torch.Tensor


@dataclass(slots=True)
class _Prompt:
    """How far a request has been read."""

    tokens: int
    pooled_to: int = 0  # positions below were pooled, or were in the cache when passed
    pooled: int = 0
    sums: torch.Tensor | None = None
    age: int = 0  # of the last decode state that was read


class StepStates:
    """Follows the requests of an engine from step to step.

    `begin` has to see every step; `prompts` and `decodes` then read the step's states.
    """

    def __init__(self) -> None:
        self._prompts: dict[str, _Prompt] = {}
        self._incomplete: set[str] = set()  # prompts of which some tokens are still to come
        self._scheduled: Any = None
        self._computed: dict[str, int] | None = None  # tokens computed before this step

    def begin(self, scheduled: Any) -> bool:
        """Take note of a step's plan.

        Args:
            scheduled: vLLM's SchedulerOutput.

        Returns:
            Whether `prompts` may find something; it has to be asked then.
        """
        for request_id in scheduled.finished_req_ids:
            self._prompts.pop(request_id, None)
            self._incomplete.discard(request_id)
        for new in scheduled.scheduled_new_reqs:
            known = self._prompts.get(new.req_id)
            # The second model runner is told of a resumed request as of a new one.
            if known is None or known.tokens != new.prompt_len:
                self._prompts[new.req_id] = _Prompt(new.prompt_len)
                self._incomplete.add(new.req_id)
        self._scheduled, self._computed = scheduled, None
        return bool(self._incomplete)

    def prompts(
        self, request_ids: Sequence[str], starts: Sequence[int], states: Sequence[torch.Tensor]
    ) -> list[PromptStates]:
        """Pool the prompt rows of this step.

        Args:
            request_ids: the batch, in the order of its rows.
            starts: shape [n + 1], the first row of each request and the end.
            states: one tensor [tokens, hidden] for each layer.

        Returns:
            The prompts that are complete with this step.
        """
        complete: list[PromptStates] = []
        if not self._incomplete:
            return complete
        computed = self._computed_before()
        for place, request_id in enumerate(request_ids):
            if request_id not in self._incomplete:
                continue
            prompt = self._prompts[request_id]
            first = computed[request_id]
            end = first + starts[place + 1] - starts[place]
            low, high = max(first, prompt.pooled_to), min(end, prompt.tokens)
            if low >= high:
                continue
            row = starts[place] - first  # plus a position: its row
            rows = slice(row + low, row + high)
            sums = torch.stack([layer[rows].sum(0, dtype=torch.float32) for layer in states])
            prompt.sums = sums if prompt.sums is None else prompt.sums + sums
            prompt.pooled += high - low
            prompt.pooled_to = high
            if high == prompt.tokens:
                last = torch.stack([layer[row + high - 1] for layer in states])
                share = prompt.pooled / prompt.tokens
                complete.append(PromptStates(request_id, prompt.sums / prompt.pooled, last, share))
                prompt.sums = None
                self._incomplete.remove(request_id)
        return complete

    def decodes(
        self, request_ids: Sequence[str], starts: Sequence[int], states: Sequence[torch.Tensor]
    ) -> DecodeStates | None:
        """The states of the newest output tokens; None where there are none.

        Arguments as for `prompts`.
        """
        ids: list[str] = []
        ages: list[int] = []
        rows: list[int] = []
        computed = self._computed_before()
        for place, request_id in enumerate(request_ids):
            prompt = self._prompts.get(request_id)
            if prompt is None:
                continue
            row = starts[place + 1] - 1
            position = computed[request_id] + row - starts[place]
            age = position - prompt.tokens + 1
            # After a preemption the answer is computed again, in several steps perhaps.
            if age <= prompt.age:
                continue
            prompt.age = age
            ids.append(request_id)
            ages.append(age)
            rows.append(row)
        if not ids:
            return None
        if rows[-1] == len(rows) - 1:  # one row each from the first on: no copy
            chosen = [layer[: len(rows)] for layer in states]
        else:
            index = torch.tensor(rows, device=states[0].device)
            chosen = [layer.index_select(0, index) for layer in states]
        return DecodeStates(ids, ages, torch.stack(chosen, dim=1))

    def _computed_before(self) -> dict[str, int]:
        """Tokens that each scheduled request had computed before this step."""
        if self._computed is None:
            cached = self._scheduled.scheduled_cached_reqs
            self._computed = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
            for new in self._scheduled.scheduled_new_reqs:
                self._computed[new.req_id] = new.num_computed_tokens
        return self._computed
