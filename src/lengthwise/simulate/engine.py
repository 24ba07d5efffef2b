"""The engine that is simulated: its limits, and how long a step takes, from what it does.

The limits are vLLM V1's own, and mean what vLLM's own names for them do.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.errors import InputError, one_line
from lengthwise.files import read_json

_MOST: Final = 2**31 - 1  # tokens, blocks or requests


@dataclass(frozen=True)
class EngineSettings:
    """What bounds a step of one engine.

    Attributes:
        slots: requests that may run at once (vLLM: --max-num-seqs).
        token_budget: tokens computed in a step at most (vLLM: --max-num-batched-tokens).
        kv_blocks: KV blocks that requests can use; None for as many as that many of the longest
            requests need, so that memory never binds. vLLM keeps one block for itself.
        block_size: tokens a KV block.
        prefix_caching: whether full blocks stay reusable after they are freed, until overwritten.
        watermark: share of the blocks that admission leaves free.
        long_prefill_tokens: prompt tokens of one request computed in a step at most; 0 for no
            limit (vLLM: --long-prefill-token-threshold).
        max_seqs: requests that the worker holds, paused ones among them (vLLM: --max-num-seqs,
            where `slots` is --max-num-active-seqs); None for as many as slots: nobody is paused.
        lag: 1 for asynchronous scheduling, where a step is planned before the results of the last
            are in: a slot is refilled one step late, and an ended answer costs one token more.
    """

    slots: int = 256
    token_budget: int = 2048
    kv_blocks: int | None = None
    block_size: int = 16
    prefix_caching: bool = True
    watermark: float = 0.0
    long_prefill_tokens: int = 0
    lag: int = 0
    max_seqs: int | None = None

    def __post_init__(self) -> None:
        """Raise InputError for an engine that could not run."""
        for name in ("slots", "token_budget", "block_size"):
            require_whole(name, getattr(self, name), 1)
        for name in ("kv_blocks", "max_seqs"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), 1)
        if self.token_budget < self.slots:
            raise InputError(
                f"a token budget of {self.token_budget} is less than the {self.slots} slots, each "
                "of which decodes a token a step: raise the budget or take fewer slots"
            )
        if self.max_seqs is not None and self.max_seqs < self.slots:
            raise InputError(
                f"max_seqs, which paused requests take too, must be at least the {self.slots} "
                f"slots, got {self.max_seqs}"
            )
        if not (_is_number(self.watermark) and 0.0 <= self.watermark < 1.0):
            raise InputError(
                f"the watermark must be from 0 to below 1, got {one_line(self.watermark)}"
            )
        require_whole(
            "long_prefill_tokens, the limit for long prefills,", self.long_prefill_tokens, 0
        )
        if not isinstance(self.prefix_caching, bool):
            raise InputError(
                f"prefix_caching must be true or false, got {one_line(self.prefix_caching, repr)}"
            )
        if self.lag not in (0, 1):
            raise InputError(f"the lag must be 0 or 1 steps, got {one_line(self.lag)}")

    @property
    def places(self) -> int:
        """Requests that the worker holds, paused ones among them."""
        return self.slots if self.max_seqs is None else self.max_seqs

    def with_places(self, more: int) -> EngineSettings:
        """The same with `more` places for each slot, unless it has places for paused requests."""
        return self if self.places > self.slots else replace(self, max_seqs=more * self.slots)

    def blocks(self, longest: int) -> int:
        """KV blocks in all, for requests of at most `longest` tokens.

        Raises:
            InputError: the longest request can never fit.
        """
        needed = -(-longest // self.block_size)
        if self.kv_blocks is None:
            # One more for each: an answer that ends in flight may still be given a block.
            return self.places * (needed + 1)
        usable = self.kv_blocks - self.watermark_blocks(self.kv_blocks)
        if needed > usable:
            raise InputError(
                f"a request of {longest:,} tokens needs {needed:,} KV blocks of {self.block_size} "
                f"tokens, and there are {usable:,}: it can never run; give more memory or leave "
                "such requests out"
            )
        return self.kv_blocks

    def watermark_blocks(self, blocks: int) -> int:
        """Blocks that admission leaves free, of so many; vLLM counts its own one, too."""
        return int(self.watermark * (blocks + 1))


def _is_number(value: object) -> bool:
    """Whether it is one; JSON's true and false are none."""
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)


def require_whole(name: str, value: Any, least: int) -> None:
    """Raise InputError for a limit that is no whole number, or none that an engine could have."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not (whole and least <= value <= _MOST):
        raise InputError(
            f"{name} must be a whole number from {least} to {_MOST:,}, got {one_line(value)}"
        )


def replaced(limits: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """An engine's limits with others in the place of some; with the slots the places go."""
    kept = {name: value for name, value in limits.items() if name != "max_seqs"}
    return {**(kept if "slots" in given else limits), **given}


def read_engine(path: Path, given: Mapping[str, Any]) -> EngineSettings:
    """The limits of the engine that a file of step costs was fitted to.

    Args:
        path: the file, which may say nothing of them.
        given: limits that replace those of the file.

    Raises:
        InputError: the file cannot be read, or a limit in it makes no sense.
    """
    document = read_json(path)
    limits = document.get("engine", {}) if isinstance(document, dict) else {}
    known = {each.name for each in fields(EngineSettings)}
    if not isinstance(limits, dict) or not limits.keys() <= known:
        raise InputError(f"{path}: the key 'engine' may hold {', '.join(sorted(known))}")
    return EngineSettings(**replaced(limits, given))


SCHEMA: Final = "lengthwise.cost/2"
_READABLE: Final = (SCHEMA, "lengthwise.cost/1")  # the first version had no `linear`

#: What a step's time depends on: the columns of `work`.
WORK: Final = (
    "prefill_tokens",  # prompt tokens computed, and tokens computed anew after a preemption
    "decode_tokens",  # answer tokens, one a decoding request
    "kv_tokens",  # tokens whose KV the step reads: the contexts of all its requests
    "requests",  # requests in the batch
    "attention_tokens",  # for every prefilled token, the tokens that it attends to
)


@dataclass(frozen=True)
class StepCost:
    """Step time = step_s + Σ cost · amount of work + linear(tokens), all in seconds.

    The last term is what the model's linear layers take. It is far from a straight line: flat while
    reading the weights takes longer than computing with them, then rising. It is given by knots,
    with monotone interpolation between them (Fritsch and Carlson, 1980), flat below the first and
    straight on beyond the last. Without knots the costs are affine in the work.

    Attributes:
        step_s: a step that does nothing: reading the weights, launching, the scheduler itself.
        prefill_s: a prefilled token.
        decode_s: a decoded token.
        kv_s: a token of context read.
        request_s: a request in the batch.
        attention_s: a pair of a prefilled token and one that it attends to.
        delay_s: from sending a request to its being in the engine's queue, and from a token's step
            to the client, together: it adds to latencies and occupies nothing.
        linear: knots (tokens computed in a step, s), tokens rising and seconds not falling.
        source: in words, where the figures come from.
    """

    step_s: float
    prefill_s: float
    decode_s: float
    kv_s: float = 0.0
    request_s: float = 0.0
    attention_s: float = 0.0
    delay_s: float = 0.0
    linear: tuple[tuple[int, float], ...] = ()
    source: str = field(default="given", compare=False)

    def __post_init__(self) -> None:
        """Raise InputError for costs that no engine has."""
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (_is_number(value) and 0.0 <= value <= _LONGEST_S):
                raise InputError(
                    f"the cost {name} must be a number of seconds from 0 to {_LONGEST_S:,}, got "
                    f"{one_line(value)}"
                )
        object.__setattr__(self, "linear", _checked(self.linear))  # JSON has lists
        first_s = self.linear[0][1] if self.linear else 0.0
        if self.step_s + self.decode_s + self.request_s + first_s <= 0.0:
            raise InputError("a step that takes no time cannot be simulated: give step_s or more")

    @property
    def terms(self) -> NDArray[np.float64]:
        """All that compiled code needs, shape [6 + t].

        The constant and the cost of each kind of WORK, then seconds of the linear layers by tokens
        from 0 on. The table, if there is one, ends one token behind the last knot, so that its last
        two entries tell how it goes on.
        """
        costs = [
            self.step_s,
            self.prefill_s,
            self.decode_s,
            self.kv_s,
            self.request_s,
            self.attention_s,
        ]
        terms: NDArray[np.float64] = np.concatenate([costs, self._table])
        return terms

    @cached_property
    def _table(self) -> NDArray[np.float64]:
        return _table(self.linear)

    def seconds(self, work: NDArray[np.float64]) -> NDArray[np.float64]:
        """The time of each step, shape [n], from its work, shape [n, 5] in the order of WORK."""
        times: NDArray[np.float64] = work @ self.terms[1:6] + self.step_s
        return times + self.linear_s(work[:, 0] + work[:, 1])

    def linear_s(self, tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """Seconds of the linear layers for so many tokens each."""
        table = self._table
        if len(table) == 0:
            return np.zeros(np.shape(tokens))
        beyond = np.maximum(tokens - (len(table) - 1), 0.0) * (table[-1] - table[-2])
        seconds: NDArray[np.float64] = np.interp(tokens, np.arange(len(table)), table) + beyond
        return seconds

    def service_s(
        self, prompt_tokens: NDArray[np.int64], output_tokens: NDArray[np.int64], batch: int
    ) -> NDArray[np.float64]:
        """Seconds of the engine that each request takes up when `batch` requests share the steps.

        Its prefill is what it adds to a step in which the others decode; each further token takes a
        share 1/batch of a step and what is the request's own in it. 1 over the mean is the engine's
        capacity in requests a second.
        """
        steps = np.maximum(output_tokens - 1, 0)
        context = prompt_tokens + 0.5 * output_tokens
        layers_s = self.linear_s(np.array([float(batch)]))
        decode = (
            (self.step_s + layers_s) / batch + self.decode_s + self.request_s + self.kv_s * context
        )
        prefill = (self.prefill_s + 0.5 * self.attention_s * prompt_tokens) * prompt_tokens
        added_s = self.linear_s((batch + prompt_tokens - 1).astype(np.float64)) - layers_s
        seconds: NDArray[np.float64] = steps * decode + prefill + added_s + self.request_s
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


_LONGEST_S: Final = 10**9  # of a cost: beyond, sums of steps are no numbers any more
_MOST_TOKENS: Final = 10**7  # of a knot
_NUMBERS: Final = tuple(
    each.name for each in fields(StepCost) if each.name not in ("source", "linear")
)


def _checked(given: Iterable[tuple[float, float]]) -> tuple[tuple[int, float], ...]:
    """The knots, if more tokens never take less time by them; else InputError."""
    try:
        knots = tuple((int(tokens), float(seconds)) for tokens, seconds in given)
    except (TypeError, ValueError, OverflowError):
        raise InputError(
            "linear must be a list of knots: tokens and seconds, finite numbers"
        ) from None
    if not knots:
        return ()
    tokens, seconds = zip(*knots, strict=True)
    if len(knots) < 2 or tokens[0] < 1 or any(b <= a for a, b in pairwise(tokens)):
        raise InputError("the knots of linear must be at two or more numbers of tokens, rising")
    if tokens[-1] > _MOST_TOKENS:  # a table has a line for each number of tokens below
        raise InputError(
            f"the knots of linear must be at no more than {_MOST_TOKENS:,} tokens, got "
            f"{one_line(tokens[-1])}"
        )
    if not (seconds[0] >= 0.0 and math.isfinite(seconds[-1])) or any(
        not b >= a for a, b in pairwise(seconds)
    ):
        raise InputError("the knots of linear must take seconds ≥ 0 that never fall")
    return knots


def _table(knots: tuple[tuple[int, float], ...]) -> NDArray[np.float64]:
    """Seconds by tokens from 0 to one behind the last knot; empty without knots."""
    from scipy.interpolate import PchipInterpolator

    if not knots:
        return np.empty(0)
    tokens, seconds = np.array(knots).T
    table: NDArray[np.float64] = PchipInterpolator(tokens, seconds)(
        np.clip(np.arange(tokens[-1] + 2), tokens[0], tokens[-1])
    )
    # The line through the last two knots, not the curve's slope at its end, which is noise.
    table[-1] += (seconds[-1] - seconds[-2]) / (tokens[-1] - tokens[-2])
    return table


def read_cost(path: Path) -> StepCost:
    """Read costs that `StepCost.write` wrote.

    Raises:
        InputError: no such file, or not such a file.
    """
    document = read_json(path)
    if not isinstance(document, dict) or document.get("schema") not in _READABLE:
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
    try:
        return StepCost(**cost)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


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
    seconds = (
        terms[0]
        + terms[1] * prefill
        + terms[2] * decode
        + terms[3] * kv
        + terms[4] * requests
        + terms[5] * attention
    )
    last = len(terms) - 1
    if last > 5:
        place = 6 + prefill + decode
        seconds += terms[min(place, last)]
        if place > last:
            seconds += (place - last) * (terms[last] - terms[last - 1])
    return float(seconds)
