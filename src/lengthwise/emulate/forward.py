"""A model that computes in vLLM while another machine's time is kept: its executor, its sampling.

vLLM's own worker runs each step as it always does; when the step is over says the pace. So tokens
and hidden states are real, and the schedule is that of the machine whose pace it is.

The worker computes a step before it returns, on this machine's processors. Scheduling may be
asynchronous all the same, as on a GPU: the engine core then plans the next step without looking at
the tokens of this one, which come to it when the clock shows the end of the step.

A sampled answer draws a random number for each token. vLLM draws them from one generator for all
requests, or from one for each, which a preemption leaves at another place. Here they come from the
request's seed and the token's place in the answer (the Gumbel-max trick: the token with the largest
logit plus Gumbel noise is a sample), so that an answer depends on its request alone and is the same
under every policy, up to what the order of additions in a batch of another size changes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from lengthwise.emulate.emulation_settings import EMULATE, emulation_settings
from lengthwise.emulate.pace import Batch, Later, ModelledPace, Pace, Work
from lengthwise.errors import InputError
from lengthwise.vllm.compat.workers import check_executor, refuse_without_worker

SEED: Final = "lengthwise_seed"  #: hint: the request's seed
TEMPERATURE: Final = "lengthwise_temperature"  #: hint: above 0
ANSWER: Final = "lengthwise_answer"  #: hint: the answer's length, and the token that ends it


class ForwardExecutor(UniProcExecutor):  # type: ignore[misc]
    """What it takes under `additional_config["lengthwise"]` is in `emulation_settings.py`.

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


class SeededSampling(AdapterLogitsProcessor):  # type: ignore[misc]
    """Adds the noise of a request's seed to its logits, and ends answers of a given length.

    It is a logits processor, vLLM's own interface for this, for requests of temperature 0.
    """

    def is_argmax_invariant(self) -> bool:
        """It changes which token is the likeliest."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """What is done to a request's logits; None for one without our hints."""
        hints = params.extra_args or {}
        if SEED not in hints:
            return None
        seed, temperature = int(hints[SEED]), float(hints[TEMPERATURE])
        tokens, end = hints.get(ANSWER, (None, None))

        def perturb(output_ids: Sequence[int], logits: torch.Tensor) -> torch.Tensor:
            place = len(output_ids)
            if tokens is not None:
                if place + 1 >= tokens:
                    logits.fill_(-torch.inf)
                    logits[end] = 0.0
                    return logits
                logits[end] = -torch.inf
            return logits.div_(temperature).add_(gumbel_noise(seed, place, len(logits)))

        return perturb


def gumbel_noise(seed: int, place: int, size: int) -> torch.Tensor:
    """Standard Gumbel numbers [size], float32, that depend on the arguments alone."""
    # The last word of a counter of 256 bits: streams of different places never meet.
    random = np.random.Generator(np.random.Philox(key=seed, counter=[0, 0, 0, place]))
    exponential = random.standard_exponential(size, dtype=np.float32)
    smallest = np.finfo(np.float32).tiny  # 0 is possible
    return torch.from_numpy(-np.log(np.maximum(exponential, smallest)))
