"""What one transformer layer takes on a GPU, by tokens: measured, or derived from a measured one.

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
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.simulate.hardware import BYTES, GPUS, MODELS

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
