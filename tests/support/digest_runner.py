"""Two model runners whose next token is a digest of the KV that they really read.

Each slot of the KV memory holds a digest of the token and the position that it was computed from.
The token that follows is a digest of all slots that a request's block table leads to, so one wrong
block, token or position gives another answer. What the answer must be follows from the prompt alone
(`digest_answer`).

Both keep what vLLM's own runners keep between two steps, and nothing else:

FirstRunner   token ids on the host and a batch of those that ran last. With asynchronous scheduling
              the newest token is on the device and only the next step finds it there; whoever was
              not in that step needs `all_token_ids`.
SecondRunner  a table of places on the device: tokens, block table and how many there are of each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bench.support.stand_in_runner import END_OF_ANSWER, FIRST_WORD, VOCABULARY

_LONGEST = 2048
_NOWHERE = 0  # the token of a place that nobody has written
_WEIGHTS = np.random.default_rng(0).integers(1, 2**63, _LONGEST, dtype=np.uint64) | np.uint64(1)

Digests = NDArray[np.uint64]


def kv_of(tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> Digests:
    """The KV of tokens at their positions."""
    mixed = tokens.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mixed ^= positions.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(31)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    return mixed ^ (mixed >> np.uint64(29))


def token_after(kv: Digests) -> int:
    """The token that follows a context."""
    digest = int((kv * _WEIGHTS[: len(kv)]).sum(dtype=np.uint64) >> np.uint64(16))
    return FIRST_WORD + digest % (VOCABULARY - FIRST_WORD)


def digest_answer(prompt: list[int], length: int) -> list[int]:
    """The answer to a prompt that ends by itself after so many tokens."""
    tokens = list(prompt)
    for _ in range(length - 1):
        known = np.array(tokens, np.int64)
        tokens.append(token_after(kv_of(known, np.arange(len(known)))))
    return [*tokens[len(prompt) :], END_OF_ANSWER]


class Held(Protocol):
    """What a runner has of one request."""

    def tokens(self, begin: int, end: int) -> list[int]:
        """Those at some positions."""

    @property
    def known(self) -> int:
        """How many there are."""

    @property
    def blocks(self) -> list[int]:
        """Its block table."""

    @property
    def prompt_tokens(self) -> int:
        """How many of the tokens are the prompt's."""


class DigestRunner:
    """What both have in common: the KV memory and the forward pass.

    Args:
        answer_lengths: request id → the answer's length in tokens, after which it ends by itself.
        num_blocks: blocks in the KV pool.
        block_size: tokens a block holds.
    """

    def __init__(self, answer_lengths: Mapping[str, int], num_blocks: int, block_size: int) -> None:
        from vllm.v1.outputs import ModelRunnerOutput

        self._output_class: Any = ModelRunnerOutput
        self._lengths = answer_lengths
        self._size = block_size
        self._memory = np.zeros((num_blocks, block_size), np.uint64)

    def run(
        self,
        scheduled: Mapping[str, int],
        computed: Mapping[str, int],
        held: Callable[[str], Held],
        keep: Callable[[str, int], None],
    ) -> Any:
        """Write the KV of a step, then read it: a ModelRunnerOutput.

        Args:
            scheduled: tokens of each request in this step.
            computed: tokens of each before it.
            held: gives what the runner has of a request.
            keep: is given each new token.
        """
        ends = {name: computed[name] + tokens for name, tokens in scheduled.items()}
        for name, end in ends.items():
            one, positions = held(name), np.arange(computed[name], end)
            assert end <= one.known, f"{name}: scheduled past its last known token"
            tokens = np.array(one.tokens(computed[name], end), np.int64)
            blocks = np.array(one.blocks)[positions // self._size]
            self._memory[blocks, positions % self._size] = kv_of(tokens, positions)
        sampled = []
        for name, end in ends.items():
            one = held(name)
            if end < one.known:
                sampled.append([])
                continue
            token = token_after(self._memory[one.blocks].reshape(-1)[:end])
            if end - one.prompt_tokens == self._lengths[name] - 1:
                token = END_OF_ANSWER
            keep(name, token)
            sampled.append([token])
        return self._output_class(
            req_ids=list(ends),
            req_id_to_index={name: place for place, name in enumerate(ends)},
            sampled_token_ids=sampled,
        )


@dataclass
class _OnHost:
    """One request of the first runner."""

    prompt: list[int]
    answer: list[int | None]  # None for a token that has never been on the host
    blocks: list[int]
    newest: int | None = None  # on the device, of the step before

    def tokens(self, begin: int, end: int) -> list[int]:
        found = (self.prompt + self.answer)[begin:end]
        if end == self.known and found[-1] is None:
            found[-1] = self.newest
        return [_NOWHERE if token is None else token for token in found]

    @property
    def known(self) -> int:
        return len(self.prompt) + len(self.answer)

    @property
    def prompt_tokens(self) -> int:
        return len(self.prompt)


class FirstRunner(DigestRunner):
    """As vLLM's `gpu_model_runner`; see there, `_update_states` and `_prepare_input_ids`.

    Args:
        asynchronous: sampled tokens stay on the device.
        given: see `DigestRunner`.
    """

    def __init__(self, asynchronous: bool, *given: Any) -> None:
        super().__init__(*given)
        self._asynchronous = asynchronous
        self.requests: dict[str, _OnHost] = {}
        self._batch: set[str] = set()

    def execute(self, output: Any) -> Any:
        """Run one step: a vLLM SchedulerOutput in, a ModelRunnerOutput out."""
        for name in output.finished_req_ids:
            self.requests.pop(name, None)
            self._batch.discard(name)
        cached = output.scheduled_cached_reqs
        scheduled = output.num_scheduled_tokens
        self._batch &= scheduled.keys() - cached.resumed_req_ids
        computed = {}
        for new in output.scheduled_new_reqs:
            self.requests[new.req_id] = _OnHost(
                list(new.prompt_token_ids), [], list(new.block_ids[0])
            )
            computed[new.req_id] = new.num_computed_tokens
        for name, blocks, done, answered in zip(
            cached.req_ids,
            cached.new_block_ids,
            cached.num_computed_tokens,
            cached.num_output_tokens,
            strict=True,
        ):
            one = self.requests[name]
            computed[name] = done
            del one.answer[answered:]
            if name in cached.resumed_req_ids:
                one.blocks = list(blocks[0])
            elif blocks is not None:
                one.blocks.extend(blocks[0])
            if name not in self._batch and self._asynchronous and answered > 0:
                one.answer = list(cached.all_token_ids[name][-answered:])
            if name not in self._batch:
                one.newest = None
        self._batch = set(scheduled)
        return self.run(scheduled, computed, self.requests.__getitem__, self._keep)

    def _keep(self, name: str, token: int) -> None:
        one = self.requests[name]
        one.newest = token
        one.answer.append(None if self._asynchronous else token)


class _InPlace:
    """One place of the second runner's tables."""

    def __init__(self, most_blocks: int) -> None:
        self._tokens = np.zeros(_LONGEST, np.int64)
        self._table = np.zeros(most_blocks, np.int64)
        self.known = self.prompt_tokens = self._count = 0

    def begin(self, new: Any) -> None:
        """It is a new request's; what was there before is only written over."""
        tokens, self._count = new.prefill_token_ids, 0
        self.known, self.prompt_tokens = len(tokens), new.prompt_len
        self._tokens[: self.known] = tokens
        self.append(new.block_ids[0])

    def append(self, blocks: list[int]) -> None:
        """More blocks."""
        self._table[self._count : self._count + len(blocks)] = blocks
        self._count += len(blocks)

    def keep(self, token: int) -> None:
        """One more token."""
        self._tokens[self.known] = token
        self.known += 1

    def tokens(self, begin: int, end: int) -> list[int]:
        return list(self._tokens[begin:end])

    @property
    def blocks(self) -> list[int]:
        return list(self._table[: self._count])


class SecondRunner(DigestRunner):
    """As vLLM's `gpu/model_runner`; see there, `finish_requests` to `update_requests`.

    Args:
        places: how many requests the tables hold.
        given: see `DigestRunner`.
    """

    def __init__(self, places: int, *given: Any) -> None:
        super().__init__(*given)
        self._free = list(range(places))
        self.index: dict[str, int] = {}
        self.places = [_InPlace(_LONGEST // self._size + 1) for _ in range(places)]

    def execute(self, output: Any) -> Any:
        """Run one step: a vLLM SchedulerOutput in, a ModelRunnerOutput out."""
        for name in sorted(output.finished_req_ids | set(output.preempted_req_ids or ())):
            self._forget(name)
        computed = {}
        for new in output.scheduled_new_reqs:
            self._forget(new.req_id)
            assert self._free, "no room in the worker"
            self.index[new.req_id] = self._free.pop()
            self.places[self.index[new.req_id]].begin(new)
            computed[new.req_id] = new.num_computed_tokens
        cached = output.scheduled_cached_reqs
        for name, blocks, done in zip(
            cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
        ):
            computed[name] = done
            if blocks is not None:
                self._held(name).append(blocks[0])
        return self.run(
            output.num_scheduled_tokens,
            computed,
            self._held,
            lambda name, token: self._held(name).keep(token),
        )

    def _forget(self, name: str) -> None:
        if name in self.index:
            self._free.append(self.index.pop(name))

    def _held(self, name: str) -> _InPlace:
        return self.places[self.index[name]]
