"""The engine of a folder that the setting `record` names, for verbs that simulate it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lengthwise.errors import InputError

if TYPE_CHECKING:
    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.cli.simulated import Machine
    from lengthwise.compare.engine_log import EngineLog


def read_steps(folder: Path) -> EngineLog:
    """The steps that were recorded in a folder; none without a file of them.

    Raises:
        InputError: the file is damaged.
    """
    from lengthwise.compare.engine_log import read_engine_log

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
    progress: ConsoleProgress,
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
    from lengthwise.advise.doctor import cost_of_steps
    from lengthwise.advise.signs import recorded_limits
    from lengthwise.cli.simulated import Machine, choose_machine, or_default_machine
    from lengthwise.simulate.engine_settings import EngineSettings

    limits = recorded_limits(record.steps, record.limits)
    limits |= {name: value for name, value in given.items() if value is not None}
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
