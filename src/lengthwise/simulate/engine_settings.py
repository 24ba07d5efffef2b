"""The engine that is simulated: vLLM V1's own limits under vLLM's own names' meaning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from lengthwise.errors import InputError
from lengthwise.files import read_json


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
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kv_blocks is not None and self.kv_blocks < 1:
            raise InputError(f"kv_blocks must be at least 1, got {self.kv_blocks}")
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
        if not 0.0 <= self.watermark < 1.0:
            raise InputError(f"the watermark must be from 0 to below 1, got {self.watermark}")
        if self.long_prefill_tokens < 0:
            raise InputError("the limit for long prefills must not be negative")
        if self.lag not in (0, 1):
            raise InputError(f"the lag must be 0 or 1 steps, got {self.lag}")

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
    try:
        return EngineSettings(**replaced(limits, given))
    except TypeError as error:
        raise InputError(f"{path}: a limit of the engine is of the wrong type: {error}") from None
