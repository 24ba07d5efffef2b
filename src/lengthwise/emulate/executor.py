"""An executor for vLLM that computes no model: a step takes as long as its work would on a GPU.

vLLM's input processing, engine core, scheduler, KV-cache manager and output processing run as they
are; only the worker is missing. Tokens are made up, so answers say nothing; they are as long as
they are asked to be (`max_tokens` with `ignore_eos`), or as the hint `lengthwise_true_tokens` says.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final
from zlib import crc32

import torch
from vllm.v1.executor.abstract import Executor as VllmExecutor
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.outputs import EMPTY_MODEL_RUNNER_OUTPUT, ModelRunnerOutput
from vllm.v1.worker.worker_base import CompilationTimes

from lengthwise.emulate.clock import VirtualClock
from lengthwise.emulate.step import Batch
from lengthwise.predict.baselines import TRUE_TOKENS
from lengthwise.simulate.step_cost import StepCost, step_seconds

EMULATE: Final = "emulate"  #: the key of our part of `additional_config`: see `Executor`
_FIRST_WORD: Final = 2  # the smallest token that ends nothing


class _Later(Future):  # type: ignore[type-arg]
    """A result that is there once the clock shows the end of its step."""

    def __init__(self, output: Any, wait: Callable[[], None]) -> None:
        super().__init__()
        self._wait = wait
        self.set_result(output)

    def result(self, timeout: float | None = None) -> Any:
        """Let the step come to its end."""
        self._wait()
        return super().result(timeout)


class Executor(VllmExecutor):  # type: ignore[misc]
    """Takes, under `additional_config["lengthwise"]["emulate"]`:

    cost             the fields of a StepCost
    kv_blocks        KV blocks that requests can use
    asynchronous     whether steps are planned while the last one runs, as on a GPU

    Attributes:
        clock: what shows the time; the driver's.
        step_ends: s at which each step ended, if the driver asks for it.
    """

    supports_pp = False

    @classmethod
    def supports_async_scheduling(cls) -> bool:
        """As a GPU's executor does."""
        return True

    def _init_executor(self) -> None:
        wanted = self.vllm_config.additional_config["lengthwise"][EMULATE]
        self._terms = StepCost(**wanted["cost"]).terms
        self._blocks = int(wanted["kv_blocks"]) + 1  # one is vLLM's own
        # The CPU platform has switched it off; the engine core reads it after this.
        self._asynchronous = bool(wanted["asynchronous"])
        self.scheduler_config.async_scheduling = self._asynchronous
        self.clock = VirtualClock()
        self._busy_until_s = 0.0
        self._batch = Batch()
        self._lengths: dict[str, int] = {}
        self._prompts: dict[str, int] = {}
        model = self.model_config
        self._vocabulary: int = model.get_vocab_size()
        self._end_of_answer = int(model.hf_config.eos_token_id)
        self._spec = FullAttentionSpec(
            block_size=self.cache_config.block_size,
            num_kv_heads=model.get_num_kv_heads(self.parallel_config),
            head_size=model.get_head_size(),
            dtype=torch.bfloat16,
        )
        self._layers = model.get_num_layers(self.parallel_config)
        self._planned: tuple[ModelRunnerOutput, float] | None = None

    def restart_clock(self) -> None:
        """Let it be 0 s; for an engine that is idle."""
        self.clock.now_s = self._busy_until_s = 0.0

    # What the engine core asks at its start ----------------------------------------------------

    def get_kv_cache_specs(self) -> list[dict[str, Any]]:
        """Full attention in every layer."""
        return [{f"model.layers.{layer}.attn": self._spec for layer in range(self._layers)}]

    def get_supported_kv_cache_layouts(self) -> list[list[str]]:
        """The one that stands for none in particular."""
        return [["NHD"]]

    def determine_available_memory(self) -> list[int]:
        """Bytes for just the KV blocks that were asked for."""
        return [self._blocks * self._layers * self._spec.page_size_bytes]

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
        work, names, complete, ends = self._take(scheduler_output)
        if not names:
            return _done(EMPTY_MODEL_RUNNER_OUTPUT) if non_block else EMPTY_MODEL_RUNNER_OUTPUT
        seconds = step_seconds(self._terms, *work)
        end_s = max(self.clock.now(), self._busy_until_s) + seconds
        self._busy_until_s = end_s
        tokens = [
            [self._token(name, end)] if sampled else []
            for name, sampled, end in zip(names, complete, ends, strict=True)
        ]
        output = ModelRunnerOutput(
            req_ids=names,
            req_id_to_index={name: place for place, name in enumerate(names)},
            sampled_token_ids=tokens,
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
        later = _Later(output, lambda: self.clock.wait_until(end_s))
        return later if non_block else later.result()

    def _take(self, output: Any) -> tuple[Any, list[str], list[bool], list[int]]:
        for name in output.finished_req_ids:
            self._lengths.pop(name, None)
            self._prompts.pop(name, None)
        for new in output.scheduled_new_reqs:
            self._prompts[new.req_id] = len(new.prompt_token_ids)
            parameters = new.sampling_params
            asked = (parameters.extra_args or {}).get(TRUE_TOKENS)
            if asked is not None and not parameters.ignore_eos:
                self._lengths[new.req_id] = int(asked)
        return self._batch.take(output)

    def _token(self, name: str, position: int) -> int:
        """The token behind `position` tokens; no two requests' answers are alike."""
        length = self._lengths.get(name)
        if length is not None and position + 1 - self._prompts[name] >= length:
            return self._end_of_answer
        words = self._vocabulary - _FIRST_WORD
        return _FIRST_WORD + (crc32(name.encode()) + 7919 * position) % words


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
