"""The folders that Lengthwise itself leaves behind, as traces.

    requests.jsonl, steps.jsonl      what the scheduler writes where the setting `record` says
    lengths-00000001.jsonl, …        what it writes where the setting `length_log` says
    rounds.jsonl, round-000.parquet  what `lengthwise bench` writes

Their formats are described in docs/reference/records.md.
"""

from __future__ import annotations

from pathlib import Path

from lengthwise.errors import InputError
from lengthwise.files import json_objects
from lengthwise.workload.length_log import segments


def is_recorded(folder: Path) -> bool:
    """Whether a folder is one of Lengthwise's own."""
    return any((folder / name).is_file() for name in ("requests.jsonl", "rounds.jsonl")) or bool(
        segments(folder)
    )


def recorded_requests(folder: Path) -> Path:
    """The file of a folder that says when requests arrived and how long they were.

    That is the scheduler's own record, or the first round of a benchmark under fcfs (the first of
    all where there is none). A length log has several files: for one it is the folder itself.

    Raises:
        InputError: the folder is neither, or no round of the benchmark was finished.
    """
    log = folder / "requests.jsonl"
    if log.is_file():
        return log
    if segments(folder):
        return folder
    rounds = folder / "rounds.jsonl"
    if not rounds.is_file():
        raise InputError(
            f"{folder}: no folder that the setting `record` names (no requests.jsonl) or "
            "`length_log` (no lengths-*.jsonl), nor one that `lengthwise bench` wrote (no "
            "rounds.jsonl): give such a folder, or a file"
        )
    finished = [
        (policy, path)
        for number, policy in _rounds(rounds)
        if (path := folder / f"round-{number:03d}.parquet").is_file()
    ]
    if not finished:
        raise InputError(f"{folder}: no finished round: run `lengthwise bench` again")
    return next((path for policy, path in finished if policy == "fcfs"), finished[0][1])


def _rounds(path: Path) -> list[tuple[int, str]]:
    """Number and policy of every round that has a whole line."""
    return [
        (value["round"], str(value.get("policy")))
        for value in json_objects(path)
        if isinstance(value.get("round"), int)
    ]
