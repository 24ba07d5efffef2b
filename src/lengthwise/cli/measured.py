"""A benchmark's folder, read as what a simulation is calibrated with and compared to."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from lengthwise.advise.measured import Floats, MeasuredRound
from lengthwise.compare.engine_log import (
    ROUNDS_FOLDER,
    SERVER_FOLDER,
    EngineLog,
    read_engine_log,
)
from lengthwise.errors import InputError
from lengthwise.measure.record import Records
from lengthwise.measure.results import Round, read_results
from lengthwise.measure.round import RoundInfo
from lengthwise.measure.run import RunInfo
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.vllm.settings import Settings, parse_settings, parse_spec

_OLD_LIMITS = (
    "the engine's limits were not recorded (older Lengthwise): they are taken from the server's "
    "command line and from the blocks that were free"
)
_OLD_PREDICTIONS = (
    "of predictions only the expected length was recorded (older Lengthwise): it stands in for the "
    "score and for the quantiles, so policies that estimate remaining lengths are simulated with "
    "other estimates than they had"
)
_OLD_TOKEN_BUDGET = 2048  # vLLM's own default for an API server, where the command names none


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
        rounds.append(_measured(results.run, each, log, notes))
    if not rounds:
        raise InputError(
            f"{folder} holds no steps of the engine ({SERVER_FOLDER}/{ROUNDS_FOLDER}/*/steps.jsonl)"
            ": give the --out folder of `lengthwise bench`, whole"
        )
    return rounds, list(notes)


def _measured(run: RunInfo, each: Round, log: EngineLog, notes: dict[str, None]) -> MeasuredRound:
    engine = _limits(run, log, notes)
    discipline = make_discipline(**_settings(each.info).discipline_arguments(engine.slots))
    return MeasuredRound(
        info=each.info,
        records=each.records,
        steps=log.steps,
        engine=engine,
        discipline=discipline,
        predictions=_predictions(each.records, log, notes if discipline.needs_predictions else {}),
        arrival_s=_column(each.records, log, "arrival_s"),
    )


def _settings(info: RoundInfo) -> Settings:
    """What the round ran with; older runs kept only the label, which says the same."""
    if info.settings:
        return parse_settings(info.settings)
    return parse_spec(
        info.policy, Settings(predictor="declared", max_overtakes=None, max_lead=None)
    )


def _limits(run: RunInfo, log: EngineLog, notes: dict[str, None]) -> EngineSettings:
    """The engine's limits as it recorded them, or as its command line has them."""
    if log.limits:
        try:
            return EngineSettings(**log.limits)  # type: ignore[arg-type]
        except TypeError as error:
            raise InputError(
                f"the recorded steps have limits that this Lengthwise does not know: {error}; "
                "pip install --upgrade lengthwise"
            ) from error
    arguments = run.server.get("arguments")
    words = [str(word) for word in arguments] if isinstance(arguments, list) else []
    given = dict(itertools.pairwise(words))
    try:
        slots, block_size = int(given["--max-num-seqs"]), int(given["--block-size"])
        token_budget = int(given.get("--max-num-batched-tokens", _OLD_TOKEN_BUDGET))
    except (KeyError, ValueError):
        raise InputError(
            "the engine's limits were not recorded (older Lengthwise), and the server's command "
            "line does not say them: run `lengthwise bench` again"
        ) from None
    notes[_OLD_LIMITS] = None
    return EngineSettings(
        slots=slots,
        token_budget=max(token_budget, slots),
        kv_blocks=int(np.nanmax(log.steps["free_blocks"])),
        block_size=block_size,
        prefix_caching="--no-enable-prefix-caching" not in words,
    )


def _predictions(records: Records, log: EngineLog, notes: dict[str, None]) -> Floats:
    """Each request's prediction in the columns of PREDICTION, NaN without; shape [n, 5]."""
    expected = records.expected_tokens
    score = _column(records, log, "score")
    if np.isnan(score).all() and np.isfinite(expected).any():
        notes[_OLD_PREDICTIONS] = None
        return np.repeat(expected[:, None], 5, axis=1)
    tokens = [_column(records, log, f"{name}_tokens") for name in ("low", "median", "high")]
    return np.stack([score, expected, *tokens], axis=1)


def _column(records: Records, log: EngineLog, name: str) -> Floats:
    """What the engine recorded of each request under a name, NaN where it did not; shape [n]."""
    values = (log.requests.get(number, {}).get(name) for number in records.request.tolist())
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
