"""A model runner that computes nothing, but relies on the scheduler as a real one does.

It keeps what vLLM's worker keeps (each request's tokens and block table), reads nothing but the
scheduler's output, and samples one token for every request whose known tokens are all computed.
The token depends on the request and the position alone, so the answer that a request would have
had alone is known beforehand (`answer_tokens`).

With `check_memory` it also plays the KV cache. Each slot holds a digest of the whole prefix that it
was computed from, and every step re-reads the context of every request that it runs: a block that
was freed too early, given out twice or wrongly taken for a cached prefix is found at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import numpy as np

VOCABULARY = 1000
END_OF_ANSWER = 1  #: token id that ends an answer
FIRST_WORD = 2  #: the smallest token id that does not


def answer_token(request_id: str, position: int) -> int:
    """The token that follows `position` tokens of prompt and answer, where the answer goes on."""
    return FIRST_WORD + (crc32(request_id.encode()) + 7919 * position) % (VOCABULARY - FIRST_WORD)


def answer_tokens(request_id: str, prompt_tokens: int, length: int, ends: bool) -> list[int]:
    """The first `length` tokens of an answer, the last one ending it if `ends`."""
    tokens = [answer_token(request_id, prompt_tokens + index) for index in range(length)]
    if ends:
        tokens[-1] = END_OF_ANSWER
    return tokens


@dataclass(slots=True)
class _Resident:
    """What the worker knows of one request."""

    prompt_tokens: int
    tokens: list[int]
    blocks: list[int]
    digests: list[int] = field(default_factory=list)  # one for each prefix of `tokens` seen so far


class StandInRunner:
    """Turns scheduler outputs into model runner outputs.

    Args:
        answer_lengths: request id → the answer's length in tokens, after which it ends by itself.
            The owner adds to it while the runner is in use.
        num_blocks: blocks in the KV pool.
        block_size: tokens a block holds.
        check_memory: keep and check the digests of every KV slot.
        places: requests that the worker has room for, as the second model runner has; it lets go
            of preempted ones. None for the first, which keeps them and has no limit.
    """

    def __init__(
        self,
        answer_lengths: Mapping[str, int],
        num_blocks: int,
        block_size: int,
        check_memory: bool = False,
        places: int | None = None,
    ) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        self._output_class: Any = ModelRunnerOutput
        self._answer_lengths = answer_lengths
        self._block_size = block_size
        self._check_memory = check_memory
        self._places = places
        self._memory = np.zeros((num_blocks, block_size), dtype=np.int64)
        self._residents: dict[str, _Resident] = {}

    def execute(self, output: Any) -> Any:
        """Run one step: a vLLM SchedulerOutput in, a ModelRunnerOutput out."""
        for request_id in output.finished_req_ids:
            self._residents.pop(request_id, None)
        if self._places is not None:
            for request_id in output.preempted_req_ids or ():
                self._residents.pop(request_id, None)
        computed = self._take_in_new(output.scheduled_new_reqs)
        assert self._places is None or len(self._residents) <= self._places, "no room in the worker"
        computed.update(self._take_in_cached(output.scheduled_cached_reqs))
        assert computed.keys() == output.num_scheduled_tokens.keys()

        request_ids = list(computed)
        ends = {i: computed[i] + tokens for i, tokens in output.num_scheduled_tokens.items()}
        if self._check_memory:
            # As in a forward pass: all of a batch's KV is written before any of it is read, so a
            # request may find its prefix in a block that is filled in the very same step.
            for request_id in request_ids:
                self._write(request_id, computed[request_id], ends[request_id])
            for request_id in request_ids:
                self._attend(request_id, ends[request_id])
        sampled = [
            self._sample(request_id, computed[request_id], ends[request_id])
            for request_id in request_ids
        ]
        return self._output_class(
            req_ids=request_ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(request_ids)},
            sampled_token_ids=sampled,
        )

    def _take_in_new(self, new: Sequence[Any]) -> dict[str, int]:
        computed = {}
        for data in new:
            # The second model runner gets a resumed request as a new one, with its whole text.
            tokens = data.prefill_token_ids or data.prompt_token_ids
            self._residents[data.req_id] = _Resident(
                len(data.prompt_token_ids), list(tokens), list(data.block_ids[0])
            )
            computed[data.req_id] = data.num_computed_tokens
        return computed

    def _take_in_cached(self, cached: Any) -> dict[str, int]:
        computed = {}
        for request_id, new_blocks, computed_tokens, output_tokens in zip(
            cached.req_ids,
            cached.new_block_ids,
            cached.num_computed_tokens,
            cached.num_output_tokens,
            strict=True,
        ):
            resident = self._residents[request_id]
            if request_id in cached.resumed_req_ids:
                resident.blocks = list(new_blocks[0])
            elif new_blocks is not None:
                resident.blocks.extend(new_blocks[0])
            known = resident.prompt_tokens + output_tokens
            # Tokens that were in flight when a request was reset are sampled again.
            del resident.tokens[known:]
            del resident.digests[known:]
            assert len(resident.tokens) == known, f"{request_id}: tokens lost"
            delivered = cached.all_token_ids.get(request_id)
            if delivered is not None:
                assert resident.tokens[: len(delivered)] == list(delivered), request_id
            computed[request_id] = computed_tokens
        return computed

    def _sample(self, request_id: str, computed: int, end: int) -> list[int]:
        resident = self._residents[request_id]
        assert end > computed, f"{request_id}: scheduled without tokens"
        assert end <= len(resident.tokens), f"{request_id}: scheduled past its last known token"
        assert end <= len(resident.blocks) * self._block_size, f"{request_id}: no block for its KV"
        if end < len(resident.tokens):
            return []
        index = end - resident.prompt_tokens
        last = index == self._answer_lengths[request_id] - 1
        token = END_OF_ANSWER if last else answer_token(request_id, end)
        resident.tokens.append(token)
        return [token]

    def _write(self, request_id: str, computed: int, end: int) -> None:
        resident = self._residents[request_id]
        digests = resident.digests
        for position in range(len(digests), end):
            previous = digests[-1] if digests else 0
            digests.append(hash((previous, resident.tokens[position])))
        for position in range(computed, end):
            block, offset = divmod(position, self._block_size)
            self._memory[resident.blocks[block], offset] = digests[position]

    def _attend(self, request_id: str, end: int) -> None:
        resident = self._residents[request_id]
        held = self._memory[resident.blocks].reshape(-1)[:end]
        assert held.tolist() == resident.digests[:end], f"{request_id}: its KV was overwritten"
