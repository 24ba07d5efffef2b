"""The simulated engine once more, in plain Python: lists, `sorted`, and no thought for speed.

Written from vLLM's scheduler, apart from `lengthwise.simulate`; `plain_plan` has what we add to it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthwise.policy.discipline import Discipline
from lengthwise.policy.prices import StepTime
from lengthwise.request import FREE, RUNNING, WAITING
from lengthwise.simulate.engine import step_seconds
from tests.support.plain_plan import in_order, plan, rank


@dataclass(eq=False)
class Job:
    index: int  # its row in the table
    row: Any  # that row
    output: int
    computed: int = 0
    scheduled: int = 0
    chunk: bool = False  # its last step left something that is known to compute
    blocks: list[int] = field(default_factory=list)
    started: float = math.nan
    tokens: list[float] = field(default_factory=list)  # when each came

    @property
    def known(self) -> int:
        return int(self.row.prompt_tokens) + len(self.tokens)

    @property
    def left(self) -> int:
        return self.known - self.computed


class PlainEngine:
    def __init__(
        self, discipline: Discipline, limits: Any, blocks: int, terms: Any, table: Any
    ) -> None:
        self.discipline, self.limits, self.terms, self.table = discipline, limits, terms, table
        self.size, self.free = int(limits.block_size), [*range(blocks)]
        self.holds: dict[int, tuple[int, int]] = {}  # block: (request, place)
        self.running: list[Job] = []
        self.waiting: list[Job] = []
        self.admitted: list[Any] = []  # rows of those who came in since the last ranking
        self.groups, self.ranks = np.zeros(len(table), np.int64), np.zeros(len(table))
        self.now, self.step, self.head = 0.0, 0, 0
        self.prices, self.ran = StepTime(), (0, 0, 0.0)  # and the step before: tokens, seconds
        self.ranked, self.prefill_weight = False, 0.0  # of `plan`
        self.served: dict[int, int] = {}  # by tenant: what has ended, and what it was lifted by
        self.waited: set[int] = set()  # tenants, when last looked at
        self.least = 0  # what the one of them had that was served least
        self.ranked, self.prefill_weight, self.token_work = False, 0.0, 0.0  # of `plan`
        self.decoded, self.prefilled, self.admissions = 0, 0, 0  # tokens so far

    def run(self, jobs: list[Job]) -> None:
        coming = list(jobs)
        while coming or self.running or self.waiting:
            if not self.running and not self.waiting:
                # An empty step tells the worker that the last requests have ended.
                self.step += self.step > 0 and coming[0].row.arrival_s > self.now
                self.now = max(self.now, coming[0].row.arrival_s)
            while coming and coming[0].row.arrival_s <= self.now:
                job = coming.pop(0)
                job.row.sequence, job.row.last_step = job.index + 1, self.step
                alike = [other.row.priority == job.row.priority for other in self.waiting]
                job.row.ahead, job.row.arrival_s = sum(alike), self.now  # as it is seen
                job.row.decoded_before, job.row.prefilled_before = self.decoded, self.prefilled
                job.row.decoded_ranked, job.row.prefilled_ranked = self.decoded, self.prefilled
                self.waiting.append(job)
            self.take_step()

    def take_step(self) -> None:
        self.step += 1
        if self.running:  # else it may have idled
            self.prices.observe(*self.ran)
        front, budget, old = plan(self), self.limits.token_budget, list(self.running)
        for job in old:
            tokens = min(job.left, budget)
            while job in self.running and self.extra(job, tokens) > len(self.free):
                self.running[-1].row.memory_preemptions += 1
                self.preempt(self.running[-1])
            if job in self.running and tokens > 0:
                self.compute(job, tokens)
                budget -= tokens
        if self.running == old:  # nobody had to make room
            self.admit(budget, front)
        self.emit([job for job in self.running if job.scheduled], old)

    def emit(self, ran: list[Job], old: list[Job]) -> None:
        decode = sum(job.scheduled == 1 and job in old for job in ran)
        prefill = [job for job in ran if job.scheduled > 1 or job not in old]
        pairs = sum(j.scheduled * (j.computed - 0.5 * (j.scheduled - 1)) for j in prefill)
        new, kv = sum(job.scheduled for job in prefill), sum(job.computed for job in ran)
        began = self.now
        self.now += step_seconds.py_func(self.terms, new, decode, kv, len(ran), pairs)
        self.ran = new, decode, self.now - began
        self.decoded, self.prefilled = self.decoded + decode, self.prefilled + new
        for job in ran:
            job.row.last_step, job.scheduled = self.step, 0
            job.row.promoted, job.chunk = max(job.row.promoted - 1, 0), job.left > 0
            if not job.chunk:
                job.tokens.append(self.now)
                if len(job.tokens) == job.output:
                    self.leave(job, FREE)
                    took = int(job.row.prompt_tokens) + 2 * job.output
                    self.served[job.row.tenant] = self.served.get(job.row.tenant, 0) + took

    def admit(self, budget: int, order: list[Job] | None) -> None:
        guards = self.discipline.guards[0]
        while budget > 0 and len(self.running) < self.limits.slots and self.waiting:
            if order is None:
                rank(self)
                order = in_order(self)
            watermark = self.limits.watermark_blocks if self.running else 0
            if not order or self.extra(order[0], order[0].known) + watermark > len(self.free):
                return
            job = order.pop(0)
            job.blocks = self.cached(job)
            self.free = [block for block in self.free if block not in job.blocks]
            job.computed, job.row.state = len(job.blocks) * self.size, RUNNING
            self.waiting.remove(job)
            self.running.append(job)
            self.admitted.append(job.row)
            self.admissions += 1
            if job.row.promoted == 0 and job.row.idle_steps >= guards["starvation_threshold"]:
                job.row.promoted = guards["starvation_quantum"]
            job.started = self.now if math.isnan(job.started) else job.started
            tokens = min(job.left, budget)
            self.compute(job, tokens)
            budget -= tokens

    def extra(self, job: Job, tokens: int) -> int:
        return math.ceil((job.computed + tokens) / self.size) - len(job.blocks)

    def cached(self, job: Job) -> list[int]:
        """Blocks of its own that nobody has overwritten since it was preempted."""
        found: list[int] = []
        where = {held: block for block, held in self.holds.items()}
        while (len(found) + 1) * self.size < job.known and (job.index, len(found)) in where:
            found.append(where[job.index, len(found)])
        return found

    def compute(self, job: Job, tokens: int) -> None:
        for _ in range(self.extra(job, tokens)):
            job.blocks.append(self.free.pop(0))
            self.holds.pop(job.blocks[-1], None)
        job.computed, job.scheduled = job.computed + tokens, tokens
        for place in range(job.computed // self.size * self.limits.caching):
            self.holds[job.blocks[place]] = (job.index, place)

    def preempt(self, job: Job) -> None:
        row = job.row
        row.decoded_meanwhile += self.decoded - row.decoded_ranked
        row.prefilled_meanwhile += self.prefilled - row.prefilled_ranked
        row.decoded_ranked, row.prefilled_ranked = self.decoded, self.prefilled
        self.leave(job, WAITING)
        self.waiting.append(job)
        self.head -= 1
        job.row.sequence, job.row.age, job.row.last_step = self.head, len(job.tokens), self.step
        job.row.computed_tokens, job.computed, job.chunk = 0, 0, False

    def leave(self, job: Job, state: int) -> None:
        self.running.remove(job)
        for block in reversed(job.blocks):
            self.free.insert(len(self.free) if block in self.holds else 0, block)
        job.blocks, job.row.state = [], state
