"""When the policy learns of a request's prediction; as in `vllm/predictions.py`."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.policy.stand_in import (
    MEDIAN_EVERY,
    PER_STEP,
    READ,
    READ_PER_STEP,
    RECENT,
    UNKNOWN,
    stand_in,
)
from lengthwise.request import BY_PROBE
from lengthwise.simulate.replica import Replica


@compiled_here
def expect(replica: Replica, i: int) -> None:
    """Request i, which has its row, wants a prediction; it ranks as the median until then."""
    engine, requests = replica.engine, replica.requests
    _write(replica.queue.order.table[requests[i].row], replica.recent.median, False)
    # Those that wait for their prediction are a list; the queue itself is in the table.
    requests[i].next = -1
    if engine.last >= 0:
        requests[engine.last].next = i
    else:
        engine.first = i
    engine.last = i


@compiled_here
def foretell(replica: Replica) -> None:
    """Predict as many as a step may, and now and then compute the median anew."""
    engine, requests, recent = replica.engine, replica.requests, replica.recent
    table = replica.queue.order.table
    made, read = 0, 0
    while engine.first >= 0 and made < PER_STEP and read < READ_PER_STEP:
        served = requests[engine.first]
        engine.first = served.next
        if engine.first < 0:
            engine.last = -1
        if served.row < 0:
            continue  # it has ended
        made += 1
        read += min(served.prompt_tokens, READ)
        if not served.predicted:
            continue
        prediction = recent.predictions[engine.predictions % RECENT]
        prediction[0] = served.score
        prediction[1] = served.expected
        prediction[2] = served.low
        prediction[3] = served.median
        prediction[4] = served.high
        engine.predictions += 1
        engine.since_median += 1
        if table[served.row].predicted != BY_PROBE:  # which knows more, and was first
            _write(table[served.row], prediction, True)
    known = min(engine.predictions, RECENT)
    if engine.since_median >= min(known, MEDIAN_EVERY) > 0:
        engine.since_median = 0
        for column in range(len(UNKNOWN)):
            recent.median[column] = np.median(recent.predictions[:known, column])
        score, expected, low, median, high = recent.median
        stand_in(table, engine.live, score, expected, low, median, high)


@compiled_here
def read_prompt(replica: Replica, i: int) -> None:
    """The first token of request i is known, and with it what the probe read in its prompt."""
    served = replica.requests[i]
    if served.row < 0 or np.isnan(served.probe_expected):
        return
    request = replica.queue.order.table[served.row]
    request.expected = request.initial = request.remaining = served.probe_expected
    request.low = served.probe_low
    request.median = served.probe_median
    request.high = served.probe_high
    request.predicted_age = 0
    request.predicted = BY_PROBE


@compiled_here
def _write(request: Any, prediction: NDArray[np.float64], predicted: bool) -> None:
    request.score = prediction[0]
    request.expected = prediction[1]
    request.low = prediction[2]
    request.median = prediction[3]
    request.high = prediction[4]
    request.initial = prediction[1]
    request.predicted_age = 0
    request.remaining = prediction[1]
    request.predicted = predicted
