"""GPUs with models on them: what a step costs, and the limits that vLLM sets there by itself.

GPUs are known by their data sheets, and models by their published config.json.

What one transformer layer takes on a GPU, by tokens, is measured, or derived from a measured one.
Measured are the linear layers, norms, activation and residual, by tensor parallelism and from 1 to
4,096 tokens; `layer_times.json` names the source. Where nobody measured, two scales turn the times
of another layer on another GPU into those that are wanted:

    seconds(n) = f + m' / m · (measured(n · r / r') − f)

m is the time to read the layer's weights at the memory's peak bandwidth, r the GPU's operations for
each byte read, and f = 30 µs what a layer's kernels, some ten, take however small they are. So the
derived layer reaches the same shares of its GPU's peaks as the measured one, at few tokens (memory)
as well as at many (computing), and bends where its own GPU does.

Between measured numbers of tokens the times rise partly in steps: a matrix product computes whole
tiles of, mostly, 128 tokens (NVIDIA, "Matrix Multiplication Background": tile quantization). Half
of the rise in steps and half evenly was nearest to measured times that were left out
(`bench/presets.py`).

What a step of a preset contains, n tokens of r requests on a group of p GPUs:

    linear layers      those times, measured, or derived and labelled so
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

import json
import math
import re
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, unknown_name
from lengthwise.simulate.engine import EngineSettings, StepCost

BYTES: Final = 2  #: of a number in bfloat16: weights, activations and KV


@dataclass(frozen=True)
class Gpu:
    """What a GPU can do.

    Attributes:
        memory_gib: GiB, as the driver reports them.
        bandwidth: of that memory, bytes/s.
        peak: of dense bfloat16 matrix products, operations/s.
        link: to its neighbours, bytes/s in one direction: NVLink where it has one, else PCIe.
        slots: vLLM's default for --max-num-seqs there.
        token_budget: vLLM's default for --max-num-batched-tokens in its server.
    """

    memory_gib: float
    bandwidth: float
    peak: float
    link: float
    slots: int = 256
    token_budget: int = 2048

    @property
    def ridge(self) -> float:
        """Operations for each byte read, above which computing takes longer than reading."""
        return self.peak / self.bandwidth


@dataclass(frozen=True)
class Model:
    """The shape of a dense decoder with gated MLP and grouped-query attention."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    tied: bool = False  #: whether the output head is the embedding

    @property
    def layer_shape(self) -> tuple[int, ...]:
        """What the cost of a layer depends on."""
        return (
            self.hidden_size,
            self.intermediate_size,
            self.heads,
            self.kv_heads,
            self.head_size,
        )

    @property
    def layer_weights(self) -> int:
        """Weights of a layer's matrices."""
        attention = 2 * (self.heads + self.kv_heads) * self.head_size * self.hidden_size
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def head_weights(self) -> int:
        """Weights of the output head; the embedding has as many."""
        return self.vocabulary * self.hidden_size

    @property
    def weights(self) -> int:
        """All weights but norms and biases, which are less than a thousandth."""
        return self.layers * self.layer_weights + (1 if self.tied else 2) * self.head_weights

    def kv_bytes(self, tensor_parallel: int = 1) -> int:
        """Bytes of KV of one token on each GPU; a GPU holds at least one KV head."""
        heads = -(-self.kv_heads // tensor_parallel)
        return 2 * self.layers * heads * self.head_size * BYTES


#: Slots and token budget as vLLM 0.32 chooses them by memory and name (vllm/engine/arg_utils.py).
GPUS: Final = {
    "a10g": Gpu(22.1, 0.600e12, 70e12, 32e9),
    "a40": Gpu(44.4, 0.696e12, 150e12, 56e9),
    "a100": Gpu(79.2, 2.04e12, 312e12, 300e9),
    "b200": Gpu(178.4, 8.00e12, 2250e12, 900e9, 1024, 16_384),
    "h100": Gpu(79.2, 3.35e12, 989e12, 450e9, 1024, 8192),
    "h200": Gpu(139.8, 4.80e12, 989e12, 450e9, 1024, 8192),
    "l40s": Gpu(44.4, 0.864e12, 362e12, 32e9),
}

MODELS: Final = {
    "llama-2-7b": Model(32, 4096, 11008, 32, 32, 128, 32_000, 4096),
    "llama-2-70b": Model(80, 8192, 28672, 64, 8, 128, 32_000, 4096),
    "llama-3-8b": Model(32, 4096, 14336, 32, 8, 128, 128_256, 8192),
    "llama-3-70b": Model(80, 8192, 28672, 64, 8, 128, 128_256, 8192),
    "mistral-7b": Model(32, 4096, 14336, 32, 8, 128, 32_768, 32_768),
    "qwen2.5-7b": Model(28, 3584, 18944, 28, 4, 128, 152_064, 32_768),
    "qwen2.5-32b": Model(64, 5120, 27648, 40, 8, 128, 152_064, 32_768),
}


Floats = NDArray[np.float64]

#: Ranks of tensor parallelism that were measured.
DEGREES: Final = (1, 2, 4, 8)

TILE: Final = 128  # tokens
_KERNELS_S: Final = 30e-6
IN_STEPS: Final = 0.5  #: share of the rise between two measured times that comes in whole tiles


class Measured(NamedTuple):
    """What was measured together."""

    gpu: str
    model: str
    tensor_parallel: int


@dataclass(frozen=True)
class LayerTimes:
    """Seconds of one layer by tokens.

    Attributes:
        tokens: shape [k], rising.
        seconds: shape [k].
        measured: what they were measured on.
        derived: whether that is another GPU or a layer of another shape.
    """

    tokens: Floats
    seconds: Floats
    measured: Measured
    derived: bool

    @property
    def knots(self) -> tuple[tuple[int, float], ...]:
        """Knots for `StepCost.linear`, of one layer."""
        return knots_of(self.tokens, self.seconds)


@cache
def measured_times() -> tuple[str, dict[Measured, tuple[Floats, Floats]]]:
    """Where the measured times come from, and tokens and seconds by what was measured."""
    path = files("lengthwise.simulate").joinpath("layer_times.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    tokens = np.array(document["tokens"], np.float64)
    curves = {
        Measured(each["gpu"], each["model"], each["tensor_parallel"]): (
            tokens,
            1e-3 * np.array(each["ms_per_layer"]),
        )
        for each in document["curves"]
    }
    return document["source"], curves


def knots_of(
    tokens: Floats, seconds: Floats, in_steps: float = IN_STEPS
) -> tuple[tuple[int, float], ...]:
    """Knots through measured times, made such that more tokens never take less time.

    Measured times fall now and then, by chance or where another kernel was chosen: the isotonic
    regression is the nearest that does not. The knots end with the last whole tile.

    Args:
        tokens: shape [k], rising.
        seconds: shape [k].
        in_steps: share of the rise that comes at the beginning of a tile.
    """
    from scipy.interpolate import PchipInterpolator
    from scipy.optimize import isotonic_regression

    def place(n: Floats) -> Floats:
        return (1.0 - in_steps) * n + in_steps * np.ceil(n / TILE) * TILE

    curve = PchipInterpolator(place(tokens), isotonic_regression(seconds).x)
    ends = np.arange(TILE, tokens[-1] + 1, TILE)
    # The last tile is one straight line, which tells how it goes on.
    at = np.unique(np.concatenate([np.maximum(np.rint(tokens), 1), ends, ends[:-2] + 1]))
    at = at[at <= ends[-1]]
    within = np.clip(at, tokens[0], tokens[-1])
    return tuple((int(n), float(value)) for n, value in zip(at, curve(place(within)), strict=True))


def layer_times(gpu: str, model: str, tensor_parallel: int) -> LayerTimes:
    """One layer's times: measured if a layer of the same shape was, else from the nearest.

    Args:
        gpu: a key of GPUS.
        model: a key of MODELS.
        tensor_parallel: GPUs that share each layer.

    Raises:
        InputError: nobody measured that many.
    """
    if tensor_parallel not in DEGREES:
        raise InputError(
            f"{tensor_parallel} GPUs: layers were measured on "
            f"{', '.join(map(str, DEGREES[:-1]))} or {DEGREES[-1]} GPUs that share them"
        )
    return derived_times(nearest(gpu, model, tensor_parallel), gpu, model)


def derived_times(source: Measured, gpu: str, model: str) -> LayerTimes:
    """The times of `model`'s layer on `gpu`, with those of `source`, scaled as said above."""
    tokens, seconds = measured_times()[1][source]
    if source.gpu == gpu and _shape(source.model) == _shape(model):
        return LayerTimes(tokens, seconds, source, derived=False)
    later = GPUS[gpu].ridge / GPUS[source.gpu].ridge
    longer = _reading_s(gpu, model) / _reading_s(source.gpu, source.model)
    scaled = _KERNELS_S + longer * (seconds - _KERNELS_S)
    return LayerTimes(tokens * later, scaled, source, derived=True)


def nearest(gpu: str, model: str, tensor_parallel: int, *, itself: bool = True) -> Measured:
    """What was measured and is most like what is asked for: the GPU first, then the layer.

    Args:
        gpu: a key of GPUS.
        model: a key of MODELS.
        tensor_parallel: one of DEGREES.
        itself: whether the same layer on the same GPU may be taken.
    """

    def distance(each: Measured) -> tuple[float, float, str]:
        ours, theirs = GPUS[gpu], GPUS[each.gpu]
        speeds = (ours.bandwidth / theirs.bandwidth, ours.peak / theirs.peak)
        sizes = MODELS[model].layer_weights / MODELS[each.model].layer_weights
        unlike = abs(math.log(sizes)) + (_shape(each.model) != _shape(model)) * 1e-3
        # Of two models with the same layers the one that was asked for names the source.
        return sum(abs(math.log(x)) for x in speeds), unlike, each.model * (each.model != model)

    candidates = [
        each
        for each in measured_times()[1]
        if each.tensor_parallel == tensor_parallel
        and (itself or each.gpu != gpu or _shape(each.model) != _shape(model))
    ]
    return min(candidates, key=distance)


def _shape(model: str) -> tuple[int, ...]:
    return MODELS[model].layer_shape


def _reading_s(gpu: str, model: str) -> float:
    return MODELS[model].layer_weights * BYTES / GPUS[gpu].bandwidth


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
    count, card = parse_group(gpu)
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


def parse_group(gpu: str) -> tuple[int, str]:
    """How many GPUs share a model, and which: `2xh100`, or `h100` for one."""
    several = re.fullmatch(r"(\d+)x(.+)", gpu)
    return (int(several[1]), several[2]) if several else (1, gpu)


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
