"""What the scheduler wrote about a benchmark's rounds: their steps and their finished requests.

Read round by round, or a whole folder as what a simulation is calibrated with and compared to.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.calibrate import Floats, MeasuredRound, fit_tokens, timed_steps
from lengthwise.errors import InputError
from lengthwise.files import parse_json
from lengthwise.measure.results import DamagedFileError, Records, Round, RunInfo, read_results
from lengthwise.policy.discipline import make_discipline
from lengthwise.settings import parse_settings
from lengthwise.simulate.engine import EngineSettings

SERVER_FOLDER = "server"  #: under a run's folder: the server's log, settings and steps
ROUNDS_FOLDER = "rounds"  #: under that: what the scheduler recorded, a folder each round

STEPS_FILE = "steps.jsonl"
REQUESTS_FILE = "requests.jsonl"

_PATIENCE_S = 5.0  # with a log that is not complete


@dataclass(frozen=True)
class EngineLog:
    """One round as the engine saw it.

    Attributes:
        steps: the steps' fields as float64 columns of equal length; null is NaN.
        requests: the finished requests' fields by request number.
        limits: the engine's, by the names of `EngineSettings`; empty in older records.
    """

    steps: Mapping[str, NDArray[np.float64]]
    requests: Mapping[int, Mapping[str, object]]
    limits: Mapping[str, object] = field(default_factory=dict)

    @property
    def lag(self) -> int:
        """By how many steps a duration is later than its work; 0 in older records."""
        return 1 if self.limits.get("lag") == 1 else 0

    def capacity(self) -> float | None:
        """Tokens (prompt and answer) of this workload that the engine can do a second.

        Prompt tokens are cheap and answer tokens are not, and a policy decides how many of each a
        full batch sees. So the time of a step is fitted to its prefill and decode tokens, and the
        capacity is that of the round's requests, whatever their order: a batch as large as the
        round's largest, always full. None where the steps do not tell.
        """
        fitted = fit_tokens(self.steps, self.lag)
        if fitted is None or not self.requests:
            return None
        prompts = self._total("prompt_tokens")
        answers = self._total("output_tokens")
        batch = max(1.0, float(self.steps["running"].max()))
        busy_s = fitted.prefill_s * prompts + (fitted.step_s / batch + fitted.decode_s) * answers
        return (prompts + answers) / busy_s if busy_s > 0 else None

    def _total(self, name: str) -> float:
        values = (request.get(name) for request in self.requests.values())
        return float(sum(value for value in values if isinstance(value, int | float)))


_STEP_COLUMNS = (
    "t",
    "duration_s",
    "prefill_tokens",
    "decode_tokens",
    "requests",
    "kv_tokens",
    "attention_tokens",
    "running",
    "waiting",
    "free_blocks",
    "preempted",
)


def read_engine_log(folder: Path, finished: int) -> EngineLog:
    """Read a round's log once it is complete.

    Args:
        folder: where the scheduler recorded the round.
        finished: how many requests it finished; the last lines may be half a second late. After
            some seconds the log is read as it is.
    """
    deadline = time.monotonic() + _PATIENCE_S
    _, requests = _read_lines(folder / REQUESTS_FILE)
    while len(requests) < finished and time.monotonic() < deadline:
        time.sleep(0.05)
        _, requests = _read_lines(folder / REQUESTS_FILE)
    header, steps = _read_lines(folder / STEPS_FILE)
    columns = {
        name: np.array(
            [np.nan if step.get(name) is None else step[name] for step in steps], dtype=np.float64
        )
        for name in _STEP_COLUMNS
    }
    by_number = {
        int(str(request["id"])): request
        for request in requests
        if str(request.get("id", "")).isdecimal()
    }
    limits = header.get("engine")
    return EngineLog(columns, by_number, limits if isinstance(limits, dict) else {})


def read_steps(folder: Path) -> EngineLog:
    """The steps that were recorded in a folder; none without a file of them.

    Raises:
        DamagedFileError: what was recorded cannot be read.
    """
    try:
        return read_engine_log(folder, 0)
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(
            f"{folder / STEPS_FILE} is damaged ({error}): record again, or move it away to "
            "simulate without it"
        ) from None


def _read_lines(path: Path) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The header of a JSON-lines file and its objects; a line still being written is left."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}, []
    values = [parse_json(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    # A server that was started again appends, and begins with another header.
    lines = [value for value in values[1:] if "schema" not in value]
    return (values[0] if values else {}), lines


def read_measured(folder: Path) -> tuple[list[MeasuredRound], list[str]]:
    """Read the rounds of a benchmark whose engine recorded its steps.

    Returns:
        The rounds, and what a reader must know of them, one line each.

    Raises:
        InputError: the folder holds no finished round with steps, or they are of no use.
    """
    results = read_results(folder)
    notes = dict.fromkeys(results.problems)
    if _offloads(results.run):
        notes[
            "KV was copied to host memory, which is not simulated: what was freed is computed again"
        ] = None
    rounds = []
    for each in results.rounds:
        try:
            log = read_steps(folder / SERVER_FOLDER / ROUNDS_FOLDER / f"{each.info.round:03d}")
        except DamagedFileError:
            notes[f"round {each.info.round} was left out: its steps are damaged"] = None
            continue
        if not timed_steps(log.steps["duration_s"], log.lag).any():
            notes[f"round {each.info.round} was left out: nothing tells what its steps took"] = None
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


def _offloads(run: RunInfo) -> bool:
    """Whether the server had host memory for its KV, in virtual time or by vLLM's flag."""
    arguments = run.server.get("arguments")
    flags = arguments if isinstance(arguments, list) else []
    return "kv_offloading_gib" in run.server or any(
        str(flag).replace("_", "-").startswith("--kv-offloading-size") for flag in flags
    )


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
    if not log.limits:
        raise InputError(
            "the recorded steps do not say what the engine's limits are: run `lengthwise bench` "
            "again"
        )
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
