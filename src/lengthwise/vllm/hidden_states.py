"""What is wanted of the model's hidden states, and what the worker tells the scheduler of them.

What is wanted says vLLM's `additional_config`:

    {"lengthwise": {"settings": FILE, "probe": {"folder": DIR, "layers": [3], "interval": 8}}}
    {"lengthwise": {"collect": {"layers": [0, 1, 2, 3]}}}

The layers stand there, and not in the settings file or in the probe's folder alone, because they
change the compiled model: `additional_config` is part of the key under which vLLM keeps compiled
graphs, and a graph without these outputs must never be reused.

What the scheduler is told are the probe's predictions of one step. They travel as an attribute of
vLLM's `ModelRunnerOutput`, which reaches the scheduler's process whole. Stock vLLM does not look at
it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lengthwise.errors import InputError, unknown_name

WORKER: Final = "lengthwise.vllm.Worker"  #: vLLM's --worker-cls where states are wanted
PROBE: Final = "probe"
COLLECT: Final = "collect"

#: Steps between two predictions of a decoding request: most of the gain at an eighth of the cost.
DEFAULT_INTERVAL: Final = 8

#: Hints (`extra_args`) of a request whose states are collected.
STATES_ID: Final = "lengthwise_id"  #: its name; without one nothing is collected
STATES_KEPT: Final = "lengthwise_states"  #: how many of its decode states to keep; absent: all


class ProbeWanted(BaseModel):
    """Predictions by a trained probe while serving."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str = Field(description="folder made by `lengthwise train-probe`")
    layers: tuple[int, ...] = Field(
        min_length=1, description="the layers that the probe reads, as the folder says"
    )
    interval: int = Field(
        default=DEFAULT_INTERVAL, ge=1, description="steps from one prediction to the next"
    )
    asynchronous: bool = Field(
        default=False,
        description="on a CPU: predict in a thread beside the next step, which then has the "
        "prediction one step later",
    )


class CollectionWanted(BaseModel):
    """States kept for training; `lengthwise collect` asks for them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] = Field(min_length=1, description="the layers to keep")
    seed: int = Field(default=0, ge=0, description="of the choice of states to keep")


def wanted_states(additional_config: Any) -> ProbeWanted | CollectionWanted | None:
    """What vLLM's `additional_config` asks of the hidden states; None for nothing.

    Layer k is the output after k layers; 0 is the embedding.

    Raises:
        InputError: a key or value is wrong.
    """
    ours = (additional_config or {}).get("lengthwise") if additional_config else None
    if not isinstance(ours, Mapping):
        return None
    kinds: dict[str, type[ProbeWanted] | type[CollectionWanted]] = {
        PROBE: ProbeWanted,
        COLLECT: CollectionWanted,
    }
    named = [name for name in kinds if name in ours]
    if not named:
        return None
    if len(named) > 1:
        raise InputError("additional_config: give 'probe' or 'collect', not both")
    name = named[0]
    kind, values = kinds[name], ours[name]
    if isinstance(values, Mapping):
        for key in values:
            if key not in kind.model_fields:
                raise unknown_name(f"key of additional_config's {name!r}", key, kind.model_fields)
    try:
        wanted = kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join([name, *map(str, first["loc"])])
        raise InputError(
            f"additional_config: {where!r}: {first['msg']} (got {first['input']!r})"
        ) from error
    if list(wanted.layers) != sorted(set(wanted.layers)) or wanted.layers[0] < 0:
        raise InputError(
            f"additional_config: {name}.layers must be different numbers from 0, in order, "
            f"not {list(wanted.layers)}"
        )
    return wanted


def require_layers(probe: Any, wanted: ProbeWanted) -> None:
    """Refuse layers in `additional_config` that are not the probe's.

    Raises:
        InputError: says what to write.
    """
    layers = list(probe.metadata.layers)
    if layers != list(wanted.layers):
        raise InputError(
            f"the probe {wanted.folder} reads the layers {layers}, additional_config says "
            f"{list(wanted.layers)}: write the probe's"
        )


_ATTRIBUTE: Final = "lengthwise_probe"


@dataclass
class ProbeOutput:
    """Predictions of one step.

    Attributes:
        prompt_ids: requests whose prompt has just been computed.
        prompt: shape [n, bins] float32, how likely the *whole* answer's length is in each bin.
        decode_ids: requests that are decoding.
        ages: shape [m] int64, output tokens that each had when its state was read.
        decode: shape [m, bins] float32, how likely the *remaining* length is in each bin.
        partial: prompts for which no prediction was made, since most of them came from the cache.
        failed: why the probe has just given up, None while it works.
    """

    prompt_ids: list[str] = field(default_factory=list)
    prompt: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    decode_ids: list[str] = field(default_factory=list)
    ages: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    decode: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    partial: int = 0
    failed: str | None = None


class Pending(Protocol):
    """Predictions whose numbers may still be on their way."""

    def result(self) -> ProbeOutput:
        """Wait for the numbers."""


def attach(output: Any, predictions: list[ProbeOutput]) -> None:
    """Send predictions along with a ModelRunnerOutput."""
    setattr(output, _ATTRIBUTE, predictions)


def attached(output: Any) -> list[ProbeOutput]:
    """The predictions that came with a ModelRunnerOutput."""
    predictions: list[ProbeOutput] = getattr(output, _ATTRIBUTE, [])
    return predictions
