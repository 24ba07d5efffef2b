"""What is emulated: a GPU with a model on it, named as in `a100:llama-3-8b`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lengthwise.errors import InputError
from lengthwise.simulate import roofline
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.step_cost import StepCost

_BLOCK_SIZE: Final = 16

#: Sequences and tokens of a step by default in vLLM's server (`EngineArgs.get_batch_defaults`).
_USUAL: Final = (256, 2048)
_LARGE: Final = {"h100": (1024, 8192), "h200": (1024, 8192), "b200": (1024, 16384)}


@dataclass(frozen=True)
class ModelShape:
    """What vLLM reads of a model without loading it: from its published config.json."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int


_SHAPES: Final = {
    "llama-2-7b": ModelShape(32, 4096, 11008, 32, 32, 128, 32000, 4096),
    "llama-3-8b": ModelShape(32, 4096, 14336, 32, 8, 128, 128256, 8192),
    "llama-3-70b": ModelShape(80, 8192, 28672, 64, 8, 128, 128256, 8192),
    "mistral-7b": ModelShape(32, 4096, 14336, 32, 8, 128, 32768, 32768),
    "qwen2.5-7b": ModelShape(28, 3584, 18944, 28, 4, 128, 152064, 32768),
    "qwen2.5-32b": ModelShape(64, 5120, 27648, 40, 8, 128, 152064, 32768),
}


@dataclass(frozen=True)
class Target:
    """A GPU with a model on it.

    Attributes:
        name: as it was asked for.
        model_name: the part of it that names the model.
        cost: what a step takes.
        engine: the limits that vLLM would have there.
        model: the model's shape.
    """

    name: str
    model_name: str
    cost: StepCost
    engine: EngineSettings
    model: ModelShape


def parse_target(text: str) -> Target:
    """The target that `GPU:MODEL` names, such as `a100:llama-3-8b` or `2xh100:llama-3-70b`.

    Raises:
        InputError: unknown names, with the list, or a model that does not fit.
    """
    gpu, colon, model = text.partition(":")
    if not colon:
        raise InputError(
            f"cannot emulate {text!r}: name GPU and model as in a100:llama-3-8b; "
            f"GPUs are {', '.join(sorted(roofline.GPUS))}, models {', '.join(sorted(_SHAPES))}"
        )
    cost = roofline.roofline(model, gpu)
    slots, token_budget = _LARGE.get(gpu.rpartition("x")[2], _USUAL)
    engine = EngineSettings(
        slots=slots,
        token_budget=token_budget,
        kv_blocks=roofline.kv_blocks(model, gpu, _BLOCK_SIZE),
        block_size=_BLOCK_SIZE,
        lag=1,
    )
    return Target(text, model, cost, engine, _SHAPES[model])
