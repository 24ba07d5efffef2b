"""What the worker tells the scheduler: the probe's predictions of one step.

They travel as an attribute of vLLM's `ModelRunnerOutput`, which reaches the scheduler's process
whole. Stock vLLM does not look at it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

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
