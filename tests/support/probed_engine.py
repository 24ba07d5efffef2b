"""An engine whose requests a probe listens to."""

from __future__ import annotations

from typing import Any

import numpy as np

from lengthwise.vllm.hidden_states import ProbeOutput, attach
from tests.support.checked_engine import CheckedEngine
from tests.support.made_up_probe import BINS, LONGEST

WIDTH = LONGEST // BINS  #: tokens of a bin


class ProbedEngine(CheckedEngine):
    """Sends predictions along that are right to within a bin, as a worker with a probe does.

    Args:
        scheduler: with the made-up probe.
        lag: see `CheckedEngine`.
        delay: steps by which predictions come later than the tokens.
        nonsense: what is sent in place of every third prediction.
    """

    def __init__(
        self, scheduler: Any, lag: int = 0, delay: int = 0, nonsense: float | None = None
    ) -> None:
        super().__init__(scheduler, lag)
        self.sent: list[ProbeOutput] = []
        self._delay = delay
        self._nonsense = nonsense
        inner = self.runner.execute

        def execute(output: Any) -> Any:
            result = inner(output)
            self.sent.append(self._predictions(output))
            due = self.sent[len(self.sent) - 1 - self._delay] if len(self.sent) > delay else None
            if due is not None and result.req_ids:
                attach(result, [due])
            return result

        self.runner.execute = execute

    def _predictions(self, output: Any) -> ProbeOutput:
        ids, ages, rows = [], [], []
        for request_id in output.num_scheduled_tokens:
            request = self.requests[request_id]
            age = request.num_computed_tokens - request.num_prompt_tokens
            if age < 1:
                continue
            row = np.full(BINS, 1e-4, np.float32)
            left = self.asked[request_id].answer - age
            row[min(max(left, 0) // WIDTH, BINS - 1)] = 1.0
            ids.append(request_id)
            ages.append(age)
            rows.append(row / row.sum())
        if not ids:
            return ProbeOutput()
        likely = np.stack(rows)
        if self._nonsense is not None:
            likely[::3] = self._nonsense
        return ProbeOutput(decode_ids=ids, ages=np.array(ages), decode=likely)
