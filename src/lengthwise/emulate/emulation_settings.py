"""What an emulated engine is told: its part of `additional_config`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from lengthwise.emulate.virtual_clock import Clock, RealClock, VirtualClock
from lengthwise.errors import InputError, unknown_name
from lengthwise.simulate.presets import parse_preset
from lengthwise.simulate.step_cost import StepCost

EMULATE: Final = "emulate"  #: the key below "lengthwise"

_CLOCKS: Final[Mapping[str, Callable[[], Clock]]] = {"real": RealClock, "virtual": VirtualClock}
_PRESET: Final = {"preset", "clock", "asynchronous"}
_COSTS: Final = {"cost", "kv_blocks", "clock", "asynchronous"}
_EXAMPLE: Final = '{"lengthwise": {"emulate": {"preset": "a100:llama-3-8b"}}}'


@dataclass(frozen=True)
class EmulationSettings:
    """An emulated engine.

    Attributes:
        cost: what a step takes.
        kv_tokens: tokens that its KV memory holds.
        clock: its time.
        asynchronous: whether steps are planned while the last one runs, as on a GPU.
    """

    cost: StepCost
    kv_tokens: int
    clock: Clock
    asynchronous: bool


def emulation_settings(config: object, block_size: int) -> EmulationSettings:
    """Read the executor's part of `additional_config`.

    Args:
        config: `{"preset": "a100:llama-3-8b"}`, or `cost` (the fields of a StepCost) and
            `kv_blocks`; with either `clock` ("real", the default, or "virtual") and
            `asynchronous` (true).
        block_size: tokens in a block of `kv_blocks`.

    Raises:
        InputError: one line that says what is wrong.
    """
    if not isinstance(config, Mapping) or not config.keys() & {"preset", "cost"}:
        raise InputError(f"what is emulated? add --additional-config '{_EXAMPLE}'")
    known = _PRESET if "preset" in config else _COSTS
    for name in config.keys() - known:
        raise unknown_name("key of the emulation", str(name), known)
    clock = config.get("clock", "real")
    if clock not in _CLOCKS:
        raise unknown_name("clock", str(clock), _CLOCKS)
    if "preset" in config:
        preset = parse_preset(str(config["preset"]))
        assert preset.engine.kv_blocks is not None
        cost, tokens = preset.cost, preset.engine.kv_blocks * preset.engine.block_size
    else:
        cost = _cost(config["cost"])
        tokens = int(config["kv_blocks"]) * block_size
    return EmulationSettings(cost, tokens, _CLOCKS[clock](), bool(config.get("asynchronous", True)))


def _cost(fields: Any) -> StepCost:
    try:
        return StepCost(**fields)
    except TypeError as error:
        raise InputError(f"the emulation's cost is not a step cost: {error}") from None
