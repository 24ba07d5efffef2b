"""How a request joins an engine, and the row that policies see of it."""

from __future__ import annotations

import math

from lengthwise.compiled import compiled_here
from lengthwise.request import WAITING
from lengthwise.simulate.foretell import expect
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
    request.decoded_before = engine.facts.decoded
    request.prefilled_before = engine.facts.prefilled
    request.queued_work = 0.0
    request.prompt_tokens = served.prompt_tokens
    request.cached_tokens = 0
    request.computed_tokens = 0
    request.preemptions = 0
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
