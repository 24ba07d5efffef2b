"""vLLM's engine core in this process with a model that computes, in virtual time or measured.

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

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from vllm.v1.executor.uniproc_executor import UniProcExecutor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from lengthwise.emulate.driver import (
    OURS,
    Asked,
    VirtualEngine,
    emulation_of,
    limits_of,
    whole_blocks,
)
from lengthwise.emulate.pace import (
    EMULATE,
    Batch,
    Later,
    MeasuredPace,
    ModelledPace,
    Pace,
    Work,
    emulation_settings,
)
from lengthwise.errors import InputError
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.vllm.compat.workers import (
    check_executor,
    engine_in_process,
    llvmlite_unseen,
    refuse_without_worker,
    stdout_on_stderr,
)
from lengthwise.vllm.hidden_states import PROBE, WORKER, ProbeWanted

SEED: Final = "lengthwise_seed"  #: hint: the request's seed
TEMPERATURE: Final = "lengthwise_temperature"  #: hint: above 0
ANSWER: Final = "lengthwise_answer"  #: hint: the answer's length, and the token that ends it


class ForwardExecutor(UniProcExecutor):  # type: ignore[misc]
    """What it takes under `additional_config["lengthwise"]` is what `emulation_settings` reads.

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


#: Tokens in a KV block: the least that vLLM's attention on a CPU takes.
BLOCK_SIZE = 32

#: Up to this size one thread computes a model: it needs no others, and where the machine is busy
#: they would wait for each other at every product.
_SMALL_BYTES = 64 * 2**20

_UNUSED = StepCost(step_s=1.0, prefill_s=0.0, decode_s=0.0)


@dataclass(frozen=True)
class ComputedModel:
    """A model that this machine computes.

    Attributes:
        folder: as Hugging Face has them.
        dtype: of its numbers; `auto` for the model's own.
        probe: that reads its hidden states; None for none.
    """

    folder: Path
    dtype: str = "auto"
    probe: ProbeWanted | None = None


class ForwardEngine(VirtualEngine):
    """An engine whose model computes its answers; make one with `open_forward_engine`."""

    def __init__(self, core: Any) -> None:
        super().__init__(core)
        config = core.vllm_config.model_config
        self._generation: dict[str, Any] = config.try_get_generation_config()
        ends = getattr(config.hf_text_config, "eos_token_id", None)
        if ends is None:
            ends = self._generation.get("eos_token_id")
        self._end_token: int = ends[0] if isinstance(ends, list) else ends
        self._temperature = float(self._generation.get("temperature") or 1.0)

    @property
    def durations(self) -> list[float]:
        """Of a measured engine, how long each step of the round took, in s."""
        assert isinstance(self._pace, MeasuredPace)
        return self._pace.durations

    def _sampling(self, asked: Asked, room: int) -> Any:
        from vllm.sampling_params import SamplingParams

        hints: dict[str, object] = dict(asked.hints)
        hints[SEED] = asked.seed
        hints[TEMPERATURE] = self._temperature
        if asked.output_tokens is not None:
            hints[ANSWER] = (asked.output_tokens, self._end_token)
        parameters = SamplingParams(
            temperature=0.0,
            max_tokens=min(room, asked.most_tokens or room),
            extra_args=hints,
            detokenize=False,
        )
        parameters.update_from_generation_config(self._generation, self._end_token)
        return parameters


@contextlib.contextmanager
def open_forward_engine(
    model: ComputedModel,
    pace: StepCost | Callable[[], float],
    engine: EngineSettings,
    *,
    longest: int,
    settings: Mapping[str, object] | None = None,
) -> Iterator[ForwardEngine]:
    """An engine core that computes a model. What vLLM prints goes to stderr.

    Args:
        model: what computes.
        pace: what its steps cost, in virtual time; or a clock of this machine, such as
            `time.monotonic`, by which they take as long as they take.
        engine: its limits. Blocks must be multiples of BLOCK_SIZE.
        longest: tokens of the longest request, prompt and answer.
        settings: of our scheduler; None for fcfs.

    Raises:
        InputError: this machine cannot hold the model, or vLLM cannot run it.
    """
    engine_in_process()
    if refuse_large(model.folder) <= _SMALL_BYTES:
        torch.set_num_threads(1)
    with stdout_on_stderr(), _first_model_runner():
        with llvmlite_unseen():
            core = _start(model, pace, engine, longest, settings)
        try:
            yield ForwardEngine(core)
        finally:
            core.shutdown()


@contextlib.contextmanager
def _first_model_runner() -> Iterator[None]:
    """Have vLLM take its first model runner; the second takes no logits processors."""
    name = "VLLM_USE_V2_MODEL_RUNNER"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def refuse_large(folder: Path) -> int:
    """Refuse a model whose weights this machine cannot hold.

    Returns:
        The weights' size in bytes.

    Raises:
        InputError: says how large they are.
    """
    weights = sum(each.stat().st_size for each in folder.glob("*.safetensors"))
    free = free_memory_bytes()
    if weights > free:
        raise InputError(
            f"the weights of {folder} take {weights / 2**30:,.1f} GiB, and {free / 2**30:,.1f} GiB "
            "of this machine's memory are free: take a smaller model, or --engine virtual without "
            "--forward"
        )
    return weights


def _start(
    model: ComputedModel,
    pace: StepCost | Callable[[], float],
    engine: EngineSettings,
    longest: int,
    settings: Mapping[str, object] | None,
) -> Any:
    from vllm.engine.arg_utils import EngineArgs
    from vllm.v1.engine.core import EngineCore

    longest = whole_blocks(longest, engine)
    ours: dict[str, object] = {
        EMULATE: emulation_of(pace if isinstance(pace, StepCost) else _UNUSED, engine, longest),
        "settings": dict(settings or {}),
    }
    if model.probe is not None:
        ours[PROBE] = model.probe.model_dump()
    try:
        config = EngineArgs(
            model=str(model.folder),
            dtype=model.dtype,
            **limits_of(engine, longest),
            kv_cache_memory_bytes=1,  # the executor says what there is
            scheduler_cls=OURS,
            worker_cls="auto" if model.probe is None else WORKER,
            logits_processors=[SeededSampling],
            distributed_executor_backend=ForwardExecutor,
            additional_config={"lengthwise": ours},
            use_tqdm_on_load=False,
        ).create_engine_config()
        config.scheduler_config.watermark = engine.watermark
        core = EngineCore(config, ForwardExecutor, log_stats=False)
    except (OSError, RuntimeError, ValueError) as error:
        words = str(error).strip().splitlines() or [type(error).__name__]
        raise InputError(f"vLLM cannot run {model.folder} here: {words[0]}") from error
    if not isinstance(pace, StepCost):
        core.model_executor.pace = MeasuredPace(pace)
    return core
