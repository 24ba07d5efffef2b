"""The pre-pass before a step, in plain Python: who goes first, who makes way, who fits.

Written from the design, apart from `lengthwise.simulate`. Shared is what a policy decides: its rank
(as plain Python), the guards, the choice of swaps and what fits.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lengthwise.policy.guards import OVERDUE, TIERS, tier
from lengthwise.policy.memory import fitting
from lengthwise.policy.remaining import expected_remaining
from lengthwise.policy.select import SWAP_EVERY, Engine, choose_swaps
from lengthwise.request import RUNNING

if TYPE_CHECKING:
    from plain_engine import Job, PlainEngine


def plan(engine: PlainEngine) -> list[Job] | None:
    """What comes before a step. Returns the only requests that may come in, None for no limit."""
    engine.ranked, slots = False, max(len(engine.running), 1)
    context = sum(job.computed for job in engine.running)
    fixed, prefill, decode, per_token, request, _ = engine.terms
    engine.decode_s = fixed + (decode + request) * slots + per_token * context
    engine.prefill_weight = prefill * slots / engine.decode_s * engine.discipline.service_time
    front = swap(engine) or fits(engine)
    wanted = sum(math.ceil(job.left / engine.size) for job in engine.running)
    most = len(engine.running) + math.ceil(engine.limits.token_budget / engine.size)
    if not engine.discipline.is_fcfs and len(engine.free) < min(wanted, most):
        rank(engine)  # memory victims are taken from the end
        engine.running.sort(key=lambda job: (job.row.priority, job.chunk, *key(engine, job)))
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
    for job in engine.running + engine.waiting:
        row = job.row
        if row.state == RUNNING:
            row.age, row.computed_tokens = len(job.tokens), job.computed
        else:
            row.cached_tokens = len(engine.cached(job)) * engine.size * chosen.reads_prefix_cache
            row.overtaken += sum(index > row.arrival_index for index in engine.admitted)
        row.wait_s, row.idle_steps = engine.now - row.arrival_s, engine.step - row.last_step
        if row.age > 0:
            law = row.expected, row.low, row.median, row.high
            row.remaining = expected_remaining(*law, row.age)
        held = row.computed_tokens if row.state == RUNNING else row.cached_tokens
        row.prefill_work = engine.prefill_weight * max(row.prompt_tokens + row.age - held - 1, 0)
        place = tier.py_func(row, chosen.guards.view(np.recarray)[0])
        parameters = chosen.parameters.view(np.recarray)[0]
        value = chosen.policy.rank.py_func(row, engine.now, parameters)
        engine.groups[job.index] = row.priority * TIERS + place
        engine.ranks[job.index] = row.arrival_index if place == OVERDUE else value
    engine.admitted = []


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
    growth = sum(engine.extra(job, job.left) for job in engine.running)
    victims, admitted = choose_swaps(
        chosen.preemption == "greedy",
        chosen.max_swaps,
        engine.groups,
        engine.ranks,
        engine.table,
        _rows(queue),
        _rows(engine.running),
        np.array(may),
        np.array([len(job.blocks) for job in engine.running]),
        Engine(
            free_slots=limits.slots - len(engine.running),
            free_blocks=len(engine.free) - growth - limits.watermark_blocks,
            token_budget=limits.token_budget - sum(job.left for job in engine.running),
            block_size=engine.size,
            caching=bool(limits.caching),
            requests=len(engine.running) + len(engine.waiting),
            step_s=engine.decode_s,
            prefill_s=engine.terms[1],
            tokens_per_step=engine.tokens_per_step,
        ),
    )
    for victim in [job for row in victims for job in engine.running if job.index == row]:
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
    queue, running = in_order(engine)[:slots], _rows(engine.running)
    count = fitting(engine.table, running, _rows(queue), growth, len(engine.free), engine.size)
    return queue[:count] if count < len(queue) else None


def _rows(jobs: list[Job]) -> Any:
    return np.array([job.index for job in jobs], np.int64)
