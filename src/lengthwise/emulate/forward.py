"""An executor for vLLM that computes the model and keeps the time of another machine.

vLLM's own worker runs each step as it always does; when the step is over says the pace. So tokens
and hidden states are real, and the schedule is that of the machine whose pace it is.

The worker computes a step before it returns, on this machine's processors. Scheduling may be
asynchronous all the same, as on a GPU: the engine core then plans the next step without looking at
the tokens of this one, which come to it when the clock shows the end of the step.
"""

from __future__ import annotations

import os
from typing import Any

from vllm.v1.executor.uniproc_executor import UniProcExecutor

from lengthwise.emulate.emulation_settings import EMULATE, emulation_settings
from lengthwise.emulate.pace import Batch, Later, ModelledPace, Pace, Work
from lengthwise.errors import InputError
from lengthwise.vllm.compat.workers import check_executor, refuse_without_worker


class ForwardExecutor(UniProcExecutor):  # type: ignore[misc]
    """See `settings.py` for what it takes under `additional_config["lengthwise"]["emulate"]`.

    Attributes:
        pace: says when steps end; its clock is the driver's.
    """

    def _init_executor(self) -> None:
        check_executor(UniProcExecutor)
        refuse_without_worker(self.vllm_config)
        ours = (self.vllm_config.additional_config or {}).get("lengthwise", {})
        wanted = emulation_settings(ours.get(EMULATE), self.cache_config.block_size)
        self.pace: Pace = ModelledPace(wanted.cost, wanted.clock)
        self._kv_tokens = wanted.kv_tokens
        self._batch = Batch()
        self._work: Work | None = None  # of the step whose tokens are to be sampled
        super()._init_executor()
        # The worker has been made for tokens that are there when it returns, as on any CPU. The
        # engine core reads this after it, and the plans of both kinds are the same to a worker.
        self.scheduler_config.async_scheduling = wanted.asynchronous

    def determine_available_memory(self) -> list[int]:
        """Bytes for just the KV blocks that were asked for, and the one that is vLLM's own.

        Raises:
            InputError: this machine has less.
        """
        (specs,) = self.get_kv_cache_specs()
        block_bytes = sum(spec.page_size_bytes for spec in specs.values())
        needed = (self._kv_tokens // self.cache_config.block_size + 1) * block_bytes
        free = free_memory_bytes()
        if needed > free:
            raise InputError(
                f"the KV of {self._kv_tokens:,} tokens takes {needed / 2**30:,.1f} GiB with this "
                f"model, and {free / 2**30:,.1f} GiB of this machine's memory are free: give fewer "
                "--kv-blocks, or a smaller --model"
            )
        return [needed]

    def execute_model(self, scheduler_output: Any, non_block: bool = False) -> Any:
        """Compute the step; its tokens come from `sample_tokens`, if there are any."""
        work, names, _, _ = self._batch.take(scheduler_output)
        future = super().execute_model(scheduler_output, non_block=True)
        if names:
            self._work = work
        return future if non_block else future.result()

    def sample_tokens(self, grammar_output: Any, non_block: bool = False) -> Any:
        """Sample the step's tokens, which are there once it is over."""
        assert self._work is not None
        output = super().sample_tokens(grammar_output)
        later = Later(output, self.pace.clock, self.pace.end_of(self._work))
        self._work = None
        return later if non_block else later.result()


def free_memory_bytes() -> int:
    """Memory that this machine can give to a new engine."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
