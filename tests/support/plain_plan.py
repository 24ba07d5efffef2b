"""The pre-pass before a step, in plain Python: who goes first, who makes way, who fits.

Written from the design, apart from `lengthwise.simulate`. Shared is what a policy decides: its rank
(as plain Python), the choice of swaps and what fits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.policy.facts import RUNNER, SWAP_EVERY, new_facts
from lengthwise.policy.guards import BEHIND, ORDINARY, OVERDUE, PROMOTED, TIERS
from lengthwise.policy.length_law import expected_remaining
from lengthwise.policy.memory import fitting
from lengthwise.policy.order import Order
from lengthwise.policy.prepass import OFTEN
from lengthwise.policy.prices import batch_s, prefill_weight
from lengthwise.policy.select import choose_swaps, left_by
from lengthwise.request import RUNNING, WAITING

if TYPE_CHECKING:
    from tests.support.plain_engine import Job, PlainEngine


def plan(engine: PlainEngine) -> list[Job] | None:
    """What comes before a step. Returns the only requests that may come in, None for no limit."""
    engine.ranked, slots = False, max(len(engine.running), 1)
    requests = len(engine.running) + len(engine.waiting)
    step_s = batch_s(engine.prices.times[0], len(engine.running))
    engine.token_work = prefill_weight(engine.prices.times[0], slots)
    engine.prefill_weight = engine.token_work * engine.discipline.service_time
    front = swap(engine) or fits(engine)
    wanted = sum(math.ceil(job.left / engine.size) for job in engine.running)
    most = len(engine.running) + math.ceil(engine.limits.token_budget / engine.size)
    if not engine.discipline.is_fcfs and len(engine.free) < min(wanted, most):
        rank(engine)  # memory victims are taken from the end
        predicted = any(job.row.predicted for job in engine.running)
        prefill_s = engine.prices.times[0]["prefill_s"]

        def last_to_go(job: Job) -> tuple[float, ...]:
            """By tier; then the overdue by arrival, the others by what is saved without them."""
            group, *later = key(engine, job)
            saved = 0.0
            if group % TIERS != OVERDUE and engine.discipline.needs_predictions and predicted:
                again_s = requests * job.row.computed_tokens * prefill_s
                saved = job.row.remaining * step_s - again_s
                if job.row.memory_preemptions >= OFTEN:
                    saved = -math.inf
            return job.row.priority, job.chunk, group, saved, *later

        engine.running.sort(key=last_to_go)
    return front


def in_order(engine: PlainEngine) -> list[Job]:
    return sorted(engine.waiting, key=lambda job: key(engine, job))


def key(engine: PlainEngine, job: Job) -> tuple[int, float, int]:
    return engine.groups[job.index], engine.ranks[job.index], job.row.sequence


def rank(engine: PlainEngine) -> None:
    """Give every request its key, once a step."""
    if engine.ranked:
        return
    engine.ranked = True
    chosen = engine.discipline
    leads(engine)
    for job in engine.running + engine.waiting:
        row = job.row
        if row.state == RUNNING:
            row.age, row.computed_tokens = len(job.tokens), job.computed
        else:
            row.cached_tokens = len(engine.cached(job)) * engine.size * chosen.reads_prefix_cache
            row.overtaken += len(
                [
                    other
                    for other in engine.admitted
                    if other.arrival_index > row.arrival_index and not other.priority < row.priority
                ]
            )
        row.wait_s, row.idle_steps = engine.now - row.arrival_s, engine.step - row.last_step
        if row.age > 0:
            law = row.expected, row.low, row.median, row.high
            row.remaining = expected_remaining(*law, row.age)
        held = row.computed_tokens if row.state == RUNNING else row.cached_tokens
        row.prefill_work = engine.prefill_weight * max(row.prompt_tokens + row.age - held - 1, 0)
    price, guards = engine.token_work, chosen.guards.view(np.recarray)[0]
    mean = (engine.decoded + price * engine.prefilled) / max(engine.admissions, 1)
    queued = sum(
        int((job.row.remaining + price * job.known if job.row.expected else mean) + 0.5)
        for job in engine.waiting
    )
    for job in engine.running + engine.waiting:
        row = job.row
        if row.state != RUNNING:
            row.queued_work = max(row.queued_work, queued)
        else:
            row.decoded_meanwhile += engine.decoded - row.decoded_ranked
            row.prefilled_meanwhile += engine.prefilled - row.prefilled_ranked
        row.decoded_ranked, row.prefilled_ranked = engine.decoded, engine.prefilled
        served = engine.decoded - row.decoded_before
        prefilled = engine.prefilled - row.prefilled_before
        if row.predicted:
            served -= row.decoded_meanwhile
            prefilled -= row.prefilled_meanwhile
        served += price * prefilled
        row.lateness = 0.0
        if math.isfinite(guards.max_lead):
            longer = max(row.remaining / max(mean, 1.0), 1.0)
            row.lateness = served * longer**0.125 / max(row.queued_work + guards.max_lead * mean, 1)
    for job in engine.running + engine.waiting:
        row = job.row
        place = tier(row, guards)
        parameters = chosen.parameters.view(np.recarray)[0]
        value = chosen.policy.rank.py_func(row, engine.now, parameters)
        engine.groups[job.index] = row.priority * TIERS + place
        if place < BEHIND:  # of a tenant that is ahead nothing is brought forward
            left = 1.0 - row.lateness**8
            value = value * left if value > 0 else value / left if left > 0 else value
        engine.ranks[job.index] = row.arrival_index if place == OVERDUE else value
    engine.admitted = []


def tier(row: Any, guards: Any) -> int:
    """Which guard holds for a request, if any."""
    patient = row.wait_s < guards.max_wait_s
    if patient and row.state == WAITING and row.lead > guards.max_tenant_lead:
        return BEHIND
    passed = row.overtaken >= guards.max_overtakes + guards.overtake_share * row.ahead
    if not patient or passed or row.lateness >= 1.0:
        return OVERDUE
    starved = row.promoted > 0 or row.idle_steps >= guards.starvation_threshold
    return PROMOTED if starved else ORDINARY


def leads(engine: PlainEngine) -> None:
    """How far each tenant is ahead of the one of those that wait that was served least."""
    begun = [job for job in engine.running + engine.waiting if job in engine.running or job.tokens]
    served = dict(engine.served)
    for job in begun:
        length = round(float(job.row.expected))
        served[job.row.tenant] = served.get(job.row.tenant, 0) + job.row.prompt_tokens + 2 * length
    wait = {job.row.tenant for job in engine.waiting}
    engine.least = min([served.get(t, 0) for t in wait & engine.waited] or [engine.least])
    for tenant in wait - engine.waited:
        lift = max(engine.least - served.get(tenant, 0), 0)
        served[tenant] = served.get(tenant, 0) + lift
        engine.served[tenant] = engine.served.get(tenant, 0) + lift
    engine.waited = wait
    engine.least = min([served[t] for t in wait] or [engine.least])
    for job in engine.waiting:
        job.row.lead = served[job.row.tenant] - engine.least


def swap(engine: PlainEngine) -> list[Job] | None:
    """Preempt for newcomers where that is worth it; then only those come in."""
    chosen, limits = engine.discipline, engine.limits
    due = engine.step % SWAP_EVERY == 0
    if not (chosen.preempts and due and engine.waiting and engine.running):
        return None
    rank(engine)
    queue = in_order(engine)[: 4 * limits.slots]
    may = [
        len(job.tokens) > 0
        and not job.chunk
        and job.row.preemptions < chosen.max_preemptions
        and key(engine, job)[:2] > key(engine, queue[0])[:2]
        for job in engine.running
    ]
    if not any(may):
        return None
    runners = _runners(engine.running)
    runners["may_make_way"] = may
    runners["freed_blocks"] = [len(job.blocks) for job in engine.running]
    facts = new_facts(
        1,
        token_budget=int(limits.token_budget),
        block_size=engine.size,
        watermark_blocks=int(limits.watermark_blocks),
        caching=bool(limits.caching),
    ).view(np.recarray)[0]
    facts.running, facts.waiting = len(engine.running), len(engine.waiting)
    facts.free_slots, facts.free_blocks = limits.slots - len(engine.running), len(engine.free)
    times = engine.prices.times[0]
    facts.step_s = batch_s(times, len(engine.running))
    facts.prefill_s = times["prefill_s"]
    facts.tokens_per_step = times["mean_tokens"]
    victims, admitted = choose_swaps(
        chosen.rules[0],
        facts,
        runners,
        Order(engine.table, engine.groups, engine.ranks),
        _rows(queue),
        left_by(chosen.rules[0], facts, runners),
    )
    for victim in [engine.running[place] for place in victims]:
        victim.row.preemptions += 1
        engine.preempt(victim)
    return queue[:admitted] if len(victims) else None


def fits(engine: PlainEngine) -> list[Job] | None:
    """Those whose predicted growth fits, where that of some does not."""
    slots = engine.limits.slots - len(engine.running)
    growth = engine.discipline.memory_growth
    if not (growth and slots and engine.waiting):
        return None
    rank(engine)
    queue, runners = in_order(engine)[:slots], _runners(engine.running)
    count = fitting(engine.table, runners, _rows(queue), growth, len(engine.free), engine.size)
    return queue[:count] if count < len(queue) else None


def _runners(jobs: list[Job]) -> Any:
    """What is the same for all that is decided of running requests."""
    runners = np.zeros(len(jobs), RUNNER)
    runners["row"] = [job.index for job in jobs]
    runners["computed_tokens"] = [job.computed for job in jobs]
    runners["wanted_tokens"] = [job.left for job in jobs]
    return runners


def _rows(jobs: list[Job]) -> Any:
    return np.array([job.index for job in jobs], np.int64)
