"""What verbs that simulate have in common: the workload, the engine and the costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lengthwise.advise.doctor import cost_of_steps
from lengthwise.advise.signs import recorded_limits
from lengthwise.compare.engine_log import EngineLog, read_engine_log
from lengthwise.compare.progress import Progress
from lengthwise.errors import InputError
from lengthwise.simulate.engine_settings import EngineSettings, read_engine, replaced
from lengthwise.simulate.presets import preset
from lengthwise.simulate.step_cost import StepCost, read_cost


class Machine(NamedTuple):
    """An engine and what its steps cost."""

    engine: EngineSettings
    cost: StepCost


def choose_machine(
    *, cost: Path | None, model: str | None, gpu: str | None, given: Mapping[str, Any]
) -> Machine:
    """The engine to simulate.

    Args:
        cost: a file of `lengthwise calibrate`; its engine's limits are the defaults.
        model: with `gpu`, a preset instead.
        gpu: see `model`.
        given: limits by the names of `EngineSettings`; None for the default.

    Raises:
        InputError: neither or both ways were given, or something in them is wrong.
    """
    limits = {name: value for name, value in given.items() if value is not None}
    if cost is not None:
        if model or gpu:
            raise InputError("give either --cost FILE or --model and --gpu, not both")
        return Machine(read_engine(cost, limits), read_cost(cost))
    if not (model and gpu):
        raise InputError(
            "what is simulated? give --cost FILE (`lengthwise calibrate` makes one from a bench "
            "run), or --model llama-3-8b --gpu h100 for a preset"
        )
    chosen = preset(gpu, model)
    engine = chosen.limits(limits.pop("block_size", chosen.engine.block_size))
    return Machine(replace(engine, **limits), chosen.cost)


def or_default_machine(
    cost: Path | None, model: str | None, gpu: str | None
) -> tuple[str | None, str | None, str]:
    """A model and a GPU where nothing was said.

    Returns:
        The model, the GPU, and a line that says what was taken for granted, or "".
    """
    if cost is not None or model or gpu:
        return model, gpu, ""
    model, gpu = "llama-3-8b", "h100"
    line = (
        f"no --cost and no --model: taking the preset {gpu}:{model}; `lengthwise calibrate` "
        "measures yours"
    )
    return model, gpu, line


def read_steps(folder: Path) -> EngineLog:
    """The steps that were recorded in a folder; none without a file of them.

    Raises:
        InputError: the file is damaged.
    """
    try:
        return read_engine_log(folder, 0)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder / 'steps.jsonl'} is damaged ({error}): record again, or move it away to "
            "simulate without it"
        ) from None


def machine_of_log(
    record: EngineLog,
    costs: Mapping[str, Any],
    given: Mapping[str, Any],
    progress: Progress,
) -> Machine:
    """The engine that a log was recorded on, with costs as given or fitted to its own steps.

    Args:
        record: the log's steps.
        costs: cost, model and gpu, as the user gave them; all None: fitted, and where that cannot
            be, the default machine's.
        given: limits of the engine that replace those recorded; None for no other.
        progress: told where the costs come from, if not from the log.

    Raises:
        InputError: something in them is wrong.
    """
    limits = replaced(
        recorded_limits(record.steps, record.limits),
        {name: value for name, value in given.items() if value is not None},
    )
    try:
        engine = EngineSettings(**limits)
    except TypeError as error:
        raise InputError(
            f"the log has limits that this Lengthwise does not know: {error}; pip install "
            "--upgrade lengthwise"
        ) from None
    if not any(costs.values()):
        try:
            return Machine(engine, cost_of_steps(record.steps, engine))
        except InputError as error:
            progress.note(f"no step costs from the log: {error}")
    model, gpu, assumed = or_default_machine(costs["cost"], costs["model"], costs["gpu"])
    if assumed:
        progress.note(assumed)
    return choose_machine(cost=costs["cost"], model=model, gpu=gpu, given=limits)
