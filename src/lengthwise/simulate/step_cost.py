"""How long a step takes, from what it does."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.errors import InputError

SCHEMA: Final = "lengthwise.cost/1"

#: What a step's time is linear in, after the constant: the columns of `work`.
WORK: Final = (
    "prefill_tokens",  # prompt tokens computed, and tokens computed anew after a preemption
    "decode_tokens",  # answer tokens, one a decoding request
    "kv_tokens",  # tokens whose KV the step reads: the contexts of all its requests
    "requests",  # requests in the batch
    "attention_tokens",  # for every prefilled token, the tokens that it attends to
)


@dataclass(frozen=True)
class StepCost:
    """Step time = step_s + Σ cost · amount of work, all in seconds.

    Attributes:
        step_s: a step that does nothing: reading the weights, launching, the scheduler itself.
        prefill_s: a prefilled token.
        decode_s: a decoded token.
        kv_s: a token of context read.
        request_s: a request in the batch.
        attention_s: a pair of a prefilled token and one that it attends to.
        delay_s: from sending a request to its being in the engine's queue, and from a token's step
            to the client, together: it adds to latencies and occupies nothing.
        source: in words, where the figures come from.
    """

    step_s: float
    prefill_s: float
    decode_s: float
    kv_s: float = 0.0
    request_s: float = 0.0
    attention_s: float = 0.0
    delay_s: float = 0.0
    source: str = field(default="given", compare=False)

    def __post_init__(self) -> None:
        """Raise InputError for costs that no engine has."""
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0.0):
                raise InputError(f"the cost {name} must be a number of seconds ≥ 0, got {value}")
        if self.step_s + self.decode_s + self.request_s <= 0.0:
            raise InputError("a step that takes no time cannot be simulated: give step_s or more")

    @property
    def terms(self) -> NDArray[np.float64]:
        """The constant and the cost of each kind of WORK, shape [6]."""
        return np.array(
            [
                self.step_s,
                self.prefill_s,
                self.decode_s,
                self.kv_s,
                self.request_s,
                self.attention_s,
            ]
        )

    def seconds(self, work: NDArray[np.float64]) -> NDArray[np.float64]:
        """The time of each step, shape [n], from its work, shape [n, 5] in the order of WORK."""
        times: NDArray[np.float64] = self.step_s + work @ self.terms[1:]
        return times

    def service_s(
        self, prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64], batch: int
    ) -> NDArray[np.float64]:
        """Seconds of the engine that each request takes up when `batch` requests share the steps.

        Its prefill is its own; each further token takes a share 1/batch of a step and what is the
        request's own in it. 1 over the mean is the engine's capacity in requests a second.
        """
        steps = np.maximum(output_tokens - 1, 0)
        context = prompt_tokens + 0.5 * output_tokens
        decode = self.step_s / batch + self.decode_s + self.request_s + self.kv_s * context
        prefill = (self.prefill_s + 0.5 * self.attention_s * prompt_tokens) * prompt_tokens
        seconds: NDArray[np.float64] = steps * decode + prefill + self.request_s
        return seconds

    def write(self, path: Path, **more: Any) -> None:
        """Write the costs as JSON, whole or not at all, with `more` beside them.

        Raises:
            InputError: the file cannot be written.
        """
        document = {"schema": SCHEMA, "cost": asdict(self), **more}
        part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            os.replace(part, path)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror or error}") from error


_NUMBERS: Final = tuple(each.name for each in fields(StepCost) if each.name != "source")


def read_cost(path: Path) -> StepCost:
    """Read costs that `StepCost.write` wrote.

    Raises:
        InputError: no such file, or not such a file.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputError(
            f"{path} is not a file of step costs of this version ({SCHEMA}): make one with "
            "`lengthwise calibrate`"
        )
    cost = document.get("cost")
    known = {each.name for each in fields(StepCost)}
    if (
        not isinstance(cost, dict)
        or not {"step_s", "prefill_s", "decode_s"} <= cost.keys() <= known
    ):
        raise InputError(f"{path}: the key 'cost' must hold {', '.join(sorted(known))}")
    for name in _NUMBERS:
        if not isinstance(cost.get(name, 0.0), int | float):
            raise InputError(f"{path}: the cost {name} is not a number")
    return StepCost(**cost)


@compiled
def step_seconds(
    terms: NDArray[np.float64],
    prefill: int,
    decode: int,
    kv: int,
    requests: int,
    attention: float,
) -> float:
    """`StepCost.seconds` of one step, for compiled code."""
    return float(
        terms[0]
        + terms[1] * prefill
        + terms[2] * decode
        + terms[3] * kv
        + terms[4] * requests
        + terms[5] * attention
    )
