"""A benchmark's folder, read as what a simulation is calibrated with and compared to."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lengthwise.advise.measured import Floats, MeasuredRound
from lengthwise.compare.engine_log import ROUNDS_FOLDER, SERVER_FOLDER, EngineLog, read_engine_log
from lengthwise.errors import InputError
from lengthwise.measure.request_record import Records
from lengthwise.measure.results import Round, read_results
from lengthwise.policy.discipline import make_discipline
from lengthwise.settings import parse_settings
from lengthwise.simulate.engine_settings import EngineSettings


def read_measured(folder: Path) -> tuple[list[MeasuredRound], list[str]]:
    """Read the rounds of a benchmark whose engine recorded its steps.

    Returns:
        The rounds, and what a reader must know of them, one line each.

    Raises:
        InputError: the folder holds no finished round with steps, or they are of no use.
    """
    results = read_results(folder)
    notes = dict.fromkeys(results.problems)
    rounds = []
    for each in results.rounds:
        log = read_engine_log(folder / SERVER_FOLDER / ROUNDS_FOLDER / f"{each.info.round:03d}", 0)
        if not np.isfinite(log.steps["duration_s"]).any():
            notes[f"round {each.info.round} was left out: its steps were not recorded"] = None
            continue
        failed = int((~each.records.completed).sum())
        if failed == len(each.records):
            notes[f"round {each.info.round} was left out: all its requests failed"] = None
            continue
        if failed:
            notes[f"round {each.info.round}: {failed} requests that failed are left out"] = None
        rounds.append(_measured(each, log))
    if not rounds:
        raise InputError(
            f"{folder} holds no steps of the engine ({SERVER_FOLDER}/{ROUNDS_FOLDER}/*/steps.jsonl)"
            ": give the --out folder of `lengthwise bench`, whole"
        )
    return rounds, list(notes)


def _measured(each: Round, log: EngineLog) -> MeasuredRound:
    engine = _limits(log)
    settings = parse_settings(each.info.settings)
    discipline = make_discipline(**settings.discipline_arguments(engine.slots))
    return MeasuredRound(
        info=each.info,
        records=each.records,
        steps=log.steps,
        engine=engine,
        discipline=discipline,
        predictions=_predictions(each.records, log),
        arrival_s=_column(each.records, log, "arrival_s"),
    )


def _limits(log: EngineLog) -> EngineSettings:
    """The engine's limits as it recorded them."""
    try:
        return EngineSettings(**log.limits)  # type: ignore[arg-type]
    except TypeError as error:
        raise InputError(
            f"the recorded steps have limits that this Lengthwise does not know: {error}; "
            "run `lengthwise bench` again"
        ) from error


def _predictions(records: Records, log: EngineLog) -> Floats:
    """Each request's prediction in the columns of PREDICTION, NaN without; shape [n, 5]."""
    score = _column(records, log, "score")
    tokens = [_column(records, log, f"{name}_tokens") for name in ("low", "median", "high")]
    return np.stack([score, records.expected_tokens, *tokens], axis=1)


def _column(records: Records, log: EngineLog, name: str) -> Floats:
    """What the engine recorded of each request under a name, NaN where it did not; shape [n]."""
    values = (log.requests.get(number, {}).get(name) for number in records.request.tolist())
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
