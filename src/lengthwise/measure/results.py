"""The folder of one run.

    run.json              what was run (see run.py)
    rounds.jsonl          one line a round, after a header line
    round-000.parquet     the requests of round 0, and so on

A round's requests are written first, whole, and its line last: a run that was cut off keeps every
round that has a line, and nothing else counts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lengthwise.errors import InputError
from lengthwise.measure.request_record import Records, RequestRecord, read_records, write_records
from lengthwise.measure.run_info import (
    ROUNDS_SCHEMA,
    RUN_SCHEMA,
    DamagedFileError,
    RoundInfo,
    RunInfo,
    check_schema,
)

RUN_FILE = "run.json"
ROUNDS_FILE = "rounds.jsonl"


@dataclass(frozen=True)
class Round:
    """A round with its requests."""

    info: RoundInfo
    records: Records


@dataclass(frozen=True)
class Results:
    """All that a run left behind, in the order in which the rounds ran."""

    run: RunInfo
    rounds: list[Round]
    problems: list[str]  # what could not be read and was left out, one line each


class ResultsWriter:
    """Writes a run's folder, round by round."""

    def __init__(self, folder: Path, run: RunInfo) -> None:
        """Start a folder; the files of an earlier run in it are replaced.

        Raises:
            InputError: the folder cannot be written.
        """
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for stale in [*folder.glob("round-*.parquet*"), folder / ROUNDS_FILE]:
                stale.unlink(missing_ok=True)
            (folder / RUN_FILE).write_text(_pretty(run.to_json()), encoding="utf-8")
            header = json.dumps({"schema": ROUNDS_SCHEMA})
            (folder / ROUNDS_FILE).write_text(header + "\n", encoding="utf-8")
        except OSError as error:
            raise InputError(
                f"cannot write results to {folder}: {error.strerror}: give another folder"
            ) from error

    def append(self, info: RoundInfo, records: Records | Sequence[RequestRecord]) -> None:
        """Save one finished round; once this returns the round survives a crash.

        Raises:
            InputError: the folder cannot be written.
        """
        write_records(records, self.folder / _records_name(info.round))
        try:
            with (self.folder / ROUNDS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(info.to_json()) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self.folder}: {error.strerror}") from error


def read_results(folder: Path) -> Results:
    """Read a run's folder, whole rounds only.

    Raises:
        InputError: there is no such folder, it holds no finished round, or a newer Lengthwise
            wrote it.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: give the --out folder of `lengthwise bench`")
    run = _read_run(folder / RUN_FILE)
    infos, problems = _read_rounds(folder / ROUNDS_FILE)
    rounds: list[Round] = []
    for info in infos:
        path = folder / _records_name(info.round)
        if not path.exists():
            problems.append(f"round {info.round} was left out: {path.name} is missing")
            continue
        try:
            rounds.append(Round(info, read_records(path)))
        except DamagedFileError:
            problems.append(f"round {info.round} was left out: {path.name} is damaged")
    if not rounds:
        raise InputError(f"{folder} holds no finished round: run `lengthwise bench` again")
    rounds.sort(key=lambda each: each.info.round)
    return Results(run, rounds, problems)


def _read_run(path: Path) -> RunInfo:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} does not exist: give the --out folder of `lengthwise bench`"
        ) from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is damaged: run `lengthwise bench` again") from error
    check_schema(value.get("schema") if isinstance(value, dict) else None, RUN_SCHEMA, path)
    try:
        return RunInfo.from_json(value)
    except TypeError as error:
        raise InputError(f"{path} is incomplete: run `lengthwise bench` again") from error


def _read_rounds(path: Path) -> tuple[list[RoundInfo], list[str]]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: run `lengthwise bench` again") from error
    infos: list[RoundInfo] = []
    problems: list[str] = []
    for number, line in enumerate(lines, start=1):
        try:
            value = json.loads(line)
        except ValueError:
            problems.append(f"line {number} of {path.name} was cut off and left out")
            continue
        if number == 1:
            check_schema(
                value.get("schema") if isinstance(value, dict) else None, ROUNDS_SCHEMA, path
            )
            continue
        try:
            infos.append(RoundInfo.from_json(value))
        except (TypeError, AttributeError):
            problems.append(f"line {number} of {path.name} is incomplete and was left out")
    return infos, problems


def _records_name(number: int) -> str:
    return f"round-{number:03d}.parquet"


def _pretty(value: dict[str, object]) -> str:
    return json.dumps(value, indent=2) + "\n"
