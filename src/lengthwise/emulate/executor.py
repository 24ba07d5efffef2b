"""An executor for vLLM that computes no model: a step takes as long as its work would on a GPU.

vLLM's input processing, engine core, scheduler, KV-cache manager and output processing run as they
are; only the worker is missing. Tokens are made up, so answers say nothing. Nor does anything
decide when an answer ends, so its length is, in this order:

given      by the caller in `vllm_xargs`: the hint that tells oracles the true length
max_tokens where the request ignores the end of sequence
drawn      for the prompt: log-normal, the same whenever the same prompt (and seed) comes

A drawn length depends on the words of the prompt, so that there is something to learn: each token
among the first ones adds its own fixed share, drawn once for that token, to the logarithm of the
median. A predictor that sees these words can know `PROMPT_SHARE` of the variance of the logarithm;
the rest is chance, as with a sampled answer.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Final, NamedTuple
from zlib import crc32

import torch
from vllm.v1.executor.abstract import Executor as VllmExecutor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes

from lengthwise.emulate.link import Offload, link_of
from lengthwise.emulate.pace import (
    EMULATE,
    Batch,
    Later,
    ModelledPace,
    Pace,
    VirtualClock,
    emulation_settings,
)
from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.vllm.compat.workers import check_executor, refuse_without_worker

MEDIAN_TOKENS: Final = 150  #: of all drawn lengths; about what chats have
SIGMA: Final = 1.0  #: standard deviation of the logarithm of drawn lengths
PROMPT_SHARE: Final = 0.75  #: of its variance, what the prompt's words decide
OPENING_TOKENS: Final = 24  #: how many tokens of a prompt decide its answer's median

#: What answers say, over and over.
TEXT: Final = (
    " The morning was quiet and the road was long. We walked to the river, sat down in the grass"
    " and watched the boats go by. Nobody was in a hurry. In the evening there was soup and bread,"
    " and somebody told a story about a clock that had stopped."
)
_END_TOKENS: Final = 2  # so many of the first token ids may be no words

_STANDARD_NORMAL: Final = NormalDist()


def spoken_tokens(model_config: Any) -> Sequence[int]:
    """The token ids that answers are made of, for vLLM's model configuration: harmless words.

    Raises:
        InputError: the model's tokenizer cannot be loaded.
    """
    if model_config.skip_tokenizer_init:
        return range(_END_TOKENS, model_config.get_vocab_size())
    return load_tokenizer(model_config.tokenizer).encode_words(TEXT)


def answer_tokens(prompt: Sequence[int], sampling: Any) -> int:
    """The length of an answer in tokens, its end of sequence included, at least 1.

    Args:
        prompt: the prompt's token ids.
        sampling: vLLM's sampling parameters. `max_tokens` may end the answer sooner: that is the
            scheduler's business, as with a real model.
    """
    length = given_tokens(sampling.extra_args or {})
    if length is None:
        if sampling.ignore_eos:
            return int(sampling.max_tokens)
        length = drawn_tokens(prompt, sampling.seed)
    # The end of sequence is ruled out for the first `min_tokens` tokens.
    return max(length, sampling.min_tokens + 1) if sampling.min_tokens else length


def given_tokens(hints: Mapping[str, object]) -> int | None:
    """The length that the caller gave; None without one, or with one that is no length."""
    value = hints.get(TRUE_TOKENS)
    try:
        # Values sent over HTTP may arrive as strings.
        length = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return max(1, round(length)) if math.isfinite(length) else None


def drawn_tokens(prompt: Sequence[int], seed: int | None = None) -> int:
    """A length drawn for a prompt: log-normal, and always the same for the same arguments."""
    chance = _normal(array("q", prompt).tobytes(), b"" if seed is None else str(seed).encode())
    deviations = (
        math.sqrt(PROMPT_SHARE) * prompt_effect(prompt) + math.sqrt(1 - PROMPT_SHARE) * chance
    )
    return max(1, round(MEDIAN_TOKENS * math.exp(SIGMA * deviations)))


def prompt_effect(prompt: Sequence[int]) -> float:
    """What the opening tokens of a prompt say of its answer: about standard normal over prompts."""
    tokens = set(prompt[:OPENING_TOKENS])
    return sum(map(_token_effect, tokens)) / math.sqrt(max(len(tokens), 1))


@lru_cache(maxsize=1 << 16)
def _token_effect(token: int) -> float:
    return _normal(array("q", [token]).tobytes(), b"token")


def _normal(data: bytes, key: bytes) -> float:
    """A standard normal number that depends on the bytes alone, the same on every machine."""
    digest = hashlib.blake2b(data, digest_size=8, key=key).digest()
    uniform = (int.from_bytes(digest, "little") + 0.5) / 2**64
    # The doubles nearest to 0 and 1 may be 0 and 1 themselves, where the inverse is infinite.
    return _STANDARD_NORMAL.inv_cdf(min(max(uniform, 1e-15), 1 - 1e-15))


# What a worker would do and say that it has done; here there is nothing to do.
_OBEYED = ("add_lora", "remove_lora", "pin_lora")


class _Answer(NamedTuple):
    """How a request's answer goes."""

    prompt_tokens: int
    tokens: int
    end_token: int | None  # None where it may not end by itself
    first_word: int


class Executor(VllmExecutor):  # type: ignore[misc]
    """What it takes under `additional_config["lengthwise"]` is what `emulation_settings` reads.

    Attributes:
        pace: says when steps end; its clock, if it is virtual, is the driver's.
        link: over which KV leaves and comes back; None without a connector.
    """

    supports_pp = False

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """As a GPU's executor does."""
        return True

    def _init_executor(self) -> None:
        check_executor(VllmExecutor)
        refuse_without_worker(self.vllm_config)
        ours = (self.vllm_config.additional_config or {}).get("lengthwise", {})
        wanted = emulation_settings(ours.get(EMULATE), self.cache_config.block_size)
        self._kv_tokens = wanted.kv_tokens
        # The CPU platform has switched it off; the engine core reads it after this.
        self._asynchronous = wanted.asynchronous
        self.scheduler_config.async_scheduling = self._asynchronous
        self.pace: Pace = ModelledPace(wanted.cost, wanted.clock)
        self._batch = Batch()
        self._answers: dict[str, _Answer] = {}
        model = self.model_config
        self._words = spoken_tokens(model)
        self._spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=model.get_num_kv_heads(self.parallel_config),
            head_size=model.get_head_size(),
            dtype=torch.bfloat16,
        )
        self._layers = model.get_num_layers(self.parallel_config)
        self.link = link_of(
            self.vllm_config,
            self._layers * self._spec.page_size_bytes,
            isinstance(wanted.clock, VirtualClock),
        )
        self._planned: tuple[ModelRunnerOutput, float] | None = None

    # What the engine core asks at its start ----------------------------------------------------

    def get_kv_cache_specs(self) -> list[dict[str, Any]]:
        """Full attention in every layer."""
        return [{f"model.layers.{layer}.attn": self._spec for layer in range(self._layers)}]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """The one that stands for none in particular."""
        return [["NHD"]]

    def determine_available_memory(self) -> list[int]:
        """Bytes for just the KV blocks that were asked for, and the one that is vLLM's own."""
        blocks = self._kv_tokens // self._spec.block_size + 1
        return [blocks * self._layers * self._spec.page_size_bytes]

    def collective_rpc(
        self,
        method: Any,
        timeout: float | None = None,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        non_block: bool = False,
    ) -> Any:
        """There is no worker to call: what has an answer is answered."""
        answer: Any = None
        if method == "get_supported_tasks":
            answer = ("generate",)
        elif method == "compile_or_warm_up_model":
            answer = CompilationTimes(language_model=0.0, encoder=0.0)
        elif method in _OBEYED:
            answer = True
        if not non_block:
            return [answer]
        future: Future[list[Any]] = Future()
        future.set_result([answer])
        return future

    def get_kv_connector_handshake_metadata(self) -> list[Any]:
        """No worker, no metadata."""
        return []

    def check_health(self) -> None:
        """Nothing of it can fail."""

    def shutdown(self) -> None:
        """Nothing of it runs."""

    # Steps ------------------------------------------------------------------------------------

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Plan when the step will be over; its tokens come from `sample_tokens`, if it is asked."""
        self._transfer(scheduler_output)
        work, names, complete, ends = self._take(scheduler_output)
        if not names:
            self._wait_for_copies()
            nothing = replace(
                EMPTY_MODEL_RUNNER_OUTPUT,
                kv_connector_output=self._transferred(self.pace.clock.now()),
            )
            return _done(nothing) if non_block else nothing
        end_s = self.pace.end_of(work)
        tokens = [
            [self._token(self._answers[name], end)] if sampled else []
            for name, sampled, end in zip(names, complete, ends, strict=True)
        ]
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: place for place, name in enumerate(names)},
            sampled_token_ids=tokens,
            kv_connector_output=self._transferred(end_s),
        )
        if self._asynchronous:
            self._planned = output, end_s
            return _done(None) if non_block else None
        return self._result(output, end_s, non_block)

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """The tokens of the step that was just planned, once it is over."""
        assert self._planned is not None
        (output, end_s), self._planned = self._planned, None
        return self._result(output, end_s, non_block)

    def take_draft_token_ids(self) -> None:
        """Nothing is proposed."""

    def _result(self, output: ModelRunnerOutput, end_s: float, non_block: bool) -> Any:
        later = Later(output, self.pace.clock, end_s)
        return later if non_block else later.result()

    def _take(self, output: Any) -> tuple[Any, list[str], list[bool], list[int]]:
        for name in output.finished_req_ids:
            self._answers.pop(name, None)
        for new in output.scheduled_new_reqs:
            sampling = new.sampling_params
            self._answers[new.req_id] = _Answer(
                prompt_tokens=len(new.prompt_token_ids),
                tokens=answer_tokens(new.prompt_token_ids, sampling),
                end_token=_end_token(sampling),
                first_word=crc32(new.req_id.encode()),
            )
        return self._batch.take(output)

    def _transfer(self, output: Any) -> None:
        """Begin what a plan asks of the link; it also lists the requests that have ended."""
        if self.link is None or output.kv_connector_metadata is None:
            return
        if isinstance(self.link, Offload):
            start_s = self.link.take(output.kv_connector_metadata, self.pace.start_s)
            self.pace.start_no_sooner(start_s)
            return
        blocks = {
            name: -(-answer.prompt_tokens // self._spec.block_size)
            for name, answer in self._answers.items()
            if name in output.finished_req_ids
        }
        self.link.take(output.kv_connector_metadata, self.pace.clock.now(), blocks)

    def _wait_for_copies(self) -> None:
        """A step in which nothing runs takes until something is there that others wait for."""
        if isinstance(self.link, Offload) and isinstance(self.pace.clock, VirtualClock):
            end_s = self.link.next_end_s
            if end_s is not None:
                self.pace.clock.wait_until(end_s)

    def _transferred(self, by_s: float) -> Any:
        """What the scheduler is told of transfers that are over by then."""
        return None if self.link is None else self.link.done(by_s)

    def _token(self, answer: _Answer, position: int) -> int:
        """The token behind `position` tokens; hardly two requests' answers begin alike."""
        place = position - answer.prompt_tokens
        if answer.end_token is not None and place + 1 >= answer.tokens:
            return answer.end_token
        return self._words[(answer.first_word + place) % len(self._words)]


def _end_token(sampling: Any) -> int | None:
    """The token with which an answer may end; without a tokenizer vLLM knows no end of sequence."""
    if sampling.ignore_eos:
        return None
    stops = sampling.stop_token_ids
    end = sampling.eos_token_id if sampling.eos_token_id is not None or not stops else stops[0]
    return None if end is None else int(end)


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
