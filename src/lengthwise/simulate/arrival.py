"""How a request joins an engine: the row that policies see of it, and when they learn more.

Predictions come and are stood in for as in `vllm/predictions.py`.
"""

from __future__ import annotations

import math
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
from lengthwise.request import BY_PROBE, WAITING
from lengthwise.simulate.replica import Replica


@compiled_here
def arrive(replica: Replica, i: int) -> None:
    """Request i joins an engine, which plans its next step for it if it had nothing to do."""
    limits, rules, engine = replica.limits, replica.rules, replica.engine
    requests = replica.requests
    served = requests[i]
    engine.outstanding += 1
    engine.tail += 1
    engine.waiting += 1
    engine.arrivals += 1
    if not rules.reorders:
        served.next = -1
        if engine.last >= 0:
            requests[engine.last].next = i
        else:
            engine.first = i
        engine.last = i
    if engine.plans_s == math.inf:
        if limits.lag == 0 and served.arrival_s > engine.starts_s > 0.0:
            engine.step += 1  # an empty one, in which the worker hears of the last end
        engine.plans_s = max(served.arrival_s, engine.starts_s)
        engine.starts_s = engine.plans_s
    if rules.reorders:
        _enter(replica, i)
        if rules.predicts:
            expect(replica, i)


@compiled_here
def _enter(replica: Replica, i: int) -> None:
    """Request i gets its row in the table that policies see.

    Its arrival is noted when the engine sees it, which is before the step that it plans next.
    """
    engine, queue, served = replica.engine, replica.queue, replica.requests[i]
    row = engine.live
    engine.live += 1
    served.row = row
    queue.request[row] = i
    request = queue.order.table[row]
    request.state = WAITING
    request.age = 0
    request.sequence = engine.tail
    request.priority = served.priority
    request.deadline_s = served.deadline_s
    request.tenant = served.tenant
    request.arrival_index = engine.arrivals - 1
    # Nothing is predicted of it, unless `expect` comes next.
    request.score = request.expected = request.initial = request.remaining = 0.0
    request.low = request.median = request.high = 0.0
    request.predicted = request.predicted_age = 0
    request.arrival_s = engine.plans_s
    request.overtaken = 0
    request.ahead = _ahead(replica, row)
    request.promoted = 0
    request.decoded_before = request.decoded_ranked = engine.facts.decoded
    request.prefilled_before = request.prefilled_ranked = engine.facts.prefilled
    request.decoded_meanwhile = request.prefilled_meanwhile = 0
    request.queued_work = 0.0
    request.prompt_tokens = served.prompt_tokens
    request.cached_tokens = 0
    request.computed_tokens = 0
    request.preemptions = request.memory_preemptions = 0
    request.adapter = 0
    request.pauses = 0
    request.look = 0
    request.last_step = engine.step


@compiled_here
def _ahead(replica: Replica, row: int) -> int:
    """Requests of the same class that wait when the one in a row, the last, arrives."""
    if not replica.limits.classes:
        return int(replica.engine.waiting - 1)
    table = replica.queue.order.table
    count = 0
    for k in range(row):
        count += int(table[k].state == WAITING and table[k].priority == table[row].priority)
    return count


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
