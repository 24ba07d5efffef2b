"""vLLM's engine core in this process with a model that computes, in virtual time or measured."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lengthwise.emulate.asked import Asked
from lengthwise.emulate.driver import VirtualEngine
from lengthwise.emulate.emulation_settings import EMULATE
from lengthwise.emulate.forward import (
    ANSWER,
    SEED,
    TEMPERATURE,
    ForwardExecutor,
    SeededSampling,
    free_memory_bytes,
)
from lengthwise.emulate.pace import MeasuredPace
from lengthwise.emulate.virtual_config import OURS, emulation_of, limits_of, whole_blocks
from lengthwise.errors import InputError
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost
from lengthwise.vllm.compat.workers import engine_in_process, llvmlite_unseen, stdout_on_stderr
from lengthwise.vllm.hidden_states import PROBE, WORKER, ProbeWanted

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
        import torch

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
