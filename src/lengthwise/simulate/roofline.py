"""Step costs derived from what a model computes and what a GPU can do. Not measured.

Each term is one resource at a stated share of its data-sheet peak, and terms add up instead of
overlapping, so a step is at most twice as fast as said here (two resources, both hidden). Shares
of the peak that kernels reach in practice: memory 0.8, matrix products 0.5. For figures to rely
on, `lengthwise calibrate` fits the same terms to a real engine's own steps.

    step_s      = bytes of all weights / (0.8 · bandwidth) + 1 ms for launching and scheduling
    prefill_s   = 2 · parameters / (0.5 · peak): a multiply and an add each
    decode_s    = the same
    kv_s        = bytes of KV per token / (0.8 · bandwidth)
    attention_s = 4 · layers · heads · head size / (0.5 · peak): QKᵀ and AV for one pair of tokens

Tensor parallelism over n GPUs divides all by n and adds two all-reduces a layer, 10 µs each.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from lengthwise.errors import InputError, unknown_name
from lengthwise.simulate.step_cost import StepCost

_MEMORY_SHARE: Final = 0.8
_COMPUTE_SHARE: Final = 0.5
_OVERHEAD_S: Final = 1e-3
_ALL_REDUCE_S: Final = 10e-6
_BYTES: Final = 2  # bfloat16, weights and KV
_KV_SHARE: Final = 0.9  # of the GPU's memory, vLLM's --gpu-memory-utilization
_ACTIVATION_BYTES: Final = 2e9


@dataclass(frozen=True)
class Model:
    """What a model computes with: from its published config.json."""

    parameters: float
    layers: int
    heads: int
    kv_heads: int
    head_size: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV of one token: keys and values of every layer."""
        return 2 * self.layers * self.kv_heads * self.head_size * _BYTES


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do: from its data sheet, dense bfloat16."""

    memory_bytes: float
    bandwidth: float  # bytes/s
    peak: float  # operations/s


MODELS: Final = {
    "llama-2-7b": Model(6.74e9, 32, 32, 32, 128),
    "llama-3-8b": Model(8.03e9, 32, 32, 8, 128),
    "llama-3-70b": Model(70.6e9, 80, 64, 8, 128),
    "mistral-7b": Model(7.25e9, 32, 32, 8, 128),
    "qwen2.5-7b": Model(7.62e9, 28, 28, 4, 128),
    "qwen2.5-32b": Model(32.8e9, 64, 40, 8, 128),
}

GPUS: Final = {
    "a10g": Gpu(24e9, 600e9, 70e12),
    "a100": Gpu(80e9, 2.04e12, 312e12),
    "b200": Gpu(180e9, 8e12, 2250e12),
    "h100": Gpu(80e9, 3.35e12, 989e12),
    "h200": Gpu(141e9, 4.8e12, 989e12),
    "l40s": Gpu(48e9, 864e9, 181e12),
}


def roofline(model: str, gpu: str) -> StepCost:
    """The costs of a step.

    Args:
        model: a key of MODELS.
        gpu: a key of GPUS, or `2xh100` for tensor parallelism over several.

    Raises:
        InputError: an unknown model or GPU.
    """
    shape, count, card = _parse(model, gpu)
    bandwidth = _MEMORY_SHARE * card.bandwidth * count
    peak = _COMPUTE_SHARE * card.peak * count
    all_reduce = 2 * shape.layers * _ALL_REDUCE_S if count > 1 else 0.0
    token_s = 2 * shape.parameters / peak
    return StepCost(
        step_s=shape.parameters * _BYTES / bandwidth + _OVERHEAD_S + all_reduce,
        prefill_s=token_s,
        decode_s=token_s,
        kv_s=shape.kv_bytes / bandwidth,
        attention_s=4 * shape.layers * shape.heads * shape.head_size / peak,
        source=f"roofline of {model} on {gpu}, not measured",
    )


def kv_blocks(model: str, gpu: str, block_size: int) -> int:
    """KV blocks that fit beside the weights.

    Raises:
        InputError: an unknown model or GPU, or the weights alone do not fit.
    """
    shape, count, card = _parse(model, gpu)
    weights = shape.parameters * _BYTES
    left = _KV_SHARE * card.memory_bytes * count - weights - _ACTIVATION_BYTES * count
    blocks = int(left / (shape.kv_bytes * block_size))
    if blocks < 1:
        raise InputError(
            f"{model} does not fit on {gpu} ({weights / 1e9:.0f} GB of weights): take more GPUs, "
            f"such as --gpu {2 * count}x{gpu.rpartition('x')[2]}"
        )
    return blocks


def _parse(model: str, gpu: str) -> tuple[Model, int, Gpu]:
    if model not in MODELS:
        raise unknown_name("model", model, MODELS)
    several = re.fullmatch(r"(\d+)x(.+)", gpu)
    count, name = (int(several[1]), several[2]) if several else (1, gpu)
    if name not in GPUS:
        raise unknown_name("GPU", name, GPUS)
    if count < 1:
        raise InputError(f"{gpu}: the number of GPUs must be at least 1")
    return MODELS[model], count, GPUS[name]
