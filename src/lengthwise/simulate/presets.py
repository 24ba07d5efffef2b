"""GPUs with models on them: what a step costs, and the limits that vLLM sets there by itself.

What a step of a preset contains, n tokens of r requests on a group of p GPUs:

    linear layers      `layer_times`: measured, or derived and labelled so
    attention, decode  reads the KV of every request's context once, at the achieved bandwidth
    attention, prefill 4 · heads · head size operations a layer for a pair of tokens (QKᵀ and AV),
                       at half of the peak
    output head        one row a request: reading the weights, at the achieved bandwidth, or, when
                       the slots are full, computing with them, whichever is longer
    embedding          reads and writes one row a token
    all-reduces        where p > 1: two a layer and one behind the embedding, each 10 µs and the
                       bytes of a ring, 2 · (p − 1) / p of the activations, at 0.7 of the link
    overhead           1 ms: launching, sampling, and what of the scheduler's work is not hidden

Achieved: the share of the peak that one GPU reaches in the linear layers' own times, of bandwidth
at one token and of operations at the most tokens. Parts add up, none hides behind another.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final

from lengthwise.errors import InputError, unknown_name
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.hardware import BYTES, GPUS, MODELS, Gpu, Model
from lengthwise.simulate.layer_times import LayerTimes, layer_times, measured_times
from lengthwise.simulate.step_cost import StepCost

BLOCK_SIZE: Final = 16  #: vLLM's default on GPUs, tokens

_ATTENTION_SHARE: Final = 0.5  # of the peak, prefill
_ALL_REDUCE_S: Final = 10e-6
_LINK_SHARE: Final = 0.7
_OVERHEAD_S: Final = 1e-3
_MEMORY_SHARE: Final = 0.9  # vLLM's --gpu-memory-utilization
_ACTIVATION_BYTES: Final = 2e9  # and CUDA graphs

#: A preset whose costs are a straight line, for comparisons: an 8B model on an A100.
AFFINE: Final = "affine-8b"
_AFFINE_COST: Final = StepCost(
    10.8e-3, 69e-6, 20e-6, 82e-9, source=f"{AFFINE}: affine costs like those of an 8B on an A100"
)


@dataclass(frozen=True)
class Preset:
    """A model on a GPU, or on several that share its layers.

    Attributes:
        name: such as `a100:llama-3-8b` or `2xa100:llama-3-70b`.
        cost: of a step.
        engine: vLLM's own limits there.
        model: its shape.
        derived: whether the linear layers' times are not measured but derived.
        sources: where the figures come from, one each.
    """

    name: str
    cost: StepCost
    engine: EngineSettings
    model: Model
    derived: bool
    sources: tuple[str, ...]

    def limits(self, block_size: int) -> EngineSettings:
        """The engine with blocks of another size in the same memory."""
        blocks = (self.engine.kv_blocks or 0) * self.engine.block_size // block_size
        return replace(self.engine, block_size=block_size, kv_blocks=max(blocks, 1))


def parse_preset(text: str) -> Preset:
    """A preset by its name, `GPU:MODEL` or `affine-8b`.

    Raises:
        InputError: not such a name, or see `preset`.
    """
    if text == AFFINE:
        like = preset("a100", "llama-3-8b")
        return replace(
            like, name=AFFINE, cost=_AFFINE_COST, derived=True, sources=(_AFFINE_COST.source,)
        )
    gpu, colon, model = text.partition(":")
    if not colon:
        raise InputError(
            f"unknown preset {text!r}: name GPU and model as in a100:llama-3-8b or "
            f"2xa100:llama-3-70b, or {AFFINE}; GPUs are {', '.join(sorted(GPUS))}, models "
            f"{', '.join(sorted(MODELS))}"
        )
    return preset(gpu, model)


def preset(gpu: str, model: str) -> Preset:
    """A model on a GPU.

    Args:
        gpu: a key of GPUS, or `2xh100` for a model whose layers two of them share.
        model: a key of MODELS.

    Raises:
        InputError: an unknown GPU or model, or one that does not fit.
    """
    if model not in MODELS:
        raise unknown_name("model", model, MODELS)
    several = re.fullmatch(r"(\d+)x(.+)", gpu)
    count, card = (int(several[1]), several[2]) if several else (1, gpu)
    if card not in GPUS:
        raise unknown_name("GPU", card, GPUS)
    times = layer_times(card, model, count)
    achieved = achieved_speeds(card, model)
    name = f"{gpu}:{model}"
    sources = _sources(card, times)
    return Preset(
        name=name,
        cost=replace(
            step_cost(MODELS[model], GPUS[card], count, times, achieved),
            source=f"{name}, {'derived' if times.derived else 'measured layers'}",
        ),
        engine=EngineSettings(
            slots=GPUS[card].slots,
            token_budget=GPUS[card].token_budget,
            kv_blocks=kv_blocks(card, model, count),
            block_size=BLOCK_SIZE,
        ),
        model=MODELS[model],
        derived=times.derived,
        sources=sources,
    )


def achieved_speeds(card: str, model: str) -> tuple[float, float]:
    """Bytes and operations a second that one GPU reaches in the linear layers."""
    times, weights = layer_times(card, model, 1), MODELS[model].layer_weights
    bandwidth = weights * BYTES / times.seconds[0]
    operations = 2 * weights * times.tokens[-1] / times.seconds[-1]
    return float(bandwidth), float(operations)


def step_cost(
    model: Model, gpu: Gpu, count: int, times: LayerTimes, achieved: tuple[float, float]
) -> StepCost:
    """The parts of a step, put together.

    Args:
        model: its shape.
        gpu: one of the group.
        count: GPUs in the group.
        times: of one layer.
        achieved: see `achieved_speeds`.
    """
    bandwidth, operations = achieved
    read_head_s = model.head_weights * BYTES / count / bandwidth
    compute_head_s = 2 * model.head_weights / count / operations
    token_s = 2 * model.hidden_size * BYTES / bandwidth
    reduces = 2 * model.layers + 1 if count > 1 else 0
    activations = model.hidden_size * BYTES * 2 * (count - 1) / count
    token_s += reduces * activations / (_LINK_SHARE * gpu.link)
    pair = 4 * model.layers * model.heads * model.head_size / count
    return StepCost(
        step_s=_OVERHEAD_S + read_head_s + reduces * _ALL_REDUCE_S,
        prefill_s=token_s,
        decode_s=token_s,
        kv_s=model.kv_bytes(count) / bandwidth,
        # A line from reading alone to what computing takes with all slots.
        request_s=max(compute_head_s - read_head_s / gpu.slots, 0.0),
        attention_s=pair / (_ATTENTION_SHARE * gpu.peak),
        linear=tuple((tokens, model.layers * seconds) for tokens, seconds in times.knots),
    )


def kv_blocks(card: str, model: str, count: int) -> int:
    """KV blocks that fit beside the weights: 0.9 of the memory, less 2 GB for activations.

    Raises:
        InputError: there is no room for one request of 1,024 tokens.
    """
    shape, gpu = MODELS[model], GPUS[card]
    weights = shape.weights * BYTES
    left = _MEMORY_SHARE * gpu.memory_gib * 2**30 - weights / count - _ACTIVATION_BYTES
    blocks = int(left / (shape.kv_bytes(count) * BLOCK_SIZE))
    if blocks < 1024 // BLOCK_SIZE:
        several = f"{count} × {card}" if count > 1 else card
        raise InputError(
            f"{model} does not fit on {several} ({weights / 1e9:.0f} GB of weights): take more "
            f"GPUs, such as {2 * count}x{card}, or larger ones"
        )
    return blocks


def _sources(card: str, times: LayerTimes) -> tuple[str, ...]:
    profiles, _ = measured_times()
    of = times.measured
    layers = f"linear layers: {profiles}, {of.model} on {of.tensor_parallel} × {of.gpu}"
    return (
        f"{layers}, scaled by bandwidth and operations" if times.derived else layers,
        f"{card}: its data sheet; the model: its config.json",
        "attention, output head, all-reduces, overhead: the assumptions of lengthwise.simulate."
        "presets",
    )
