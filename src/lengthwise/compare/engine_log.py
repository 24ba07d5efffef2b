"""What the scheduler wrote about one round: its steps and its finished requests."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lengthwise.advise.calibrate import fit_tokens

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

    def capacity(self) -> float | None:
        """Tokens (prompt and answer) of this workload that the engine can do a second.

        Prompt tokens are cheap and answer tokens are not, and a policy decides how many of each a
        full batch sees. So the time of a step is fitted to its prefill and decode tokens, and the
        capacity is that of the round's requests, whatever their order: a batch as large as the
        round's largest, always full. None where the steps do not tell.
        """
        fitted = fit_tokens(self.steps)
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


def _read_lines(path: Path) -> tuple[dict[str, object], list[dict[str, object]]]:
    """The header of a JSON-lines file and its objects; a line still being written is left."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        return {}, []
    values = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    # A server that was started again appends, and begins with another header.
    lines = [value for value in values[1:] if "schema" not in value]
    return (values[0] if values else {}), lines
