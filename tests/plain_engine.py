"""The simulated engine once more, in plain Python: lists, `sorted`, and no thought for speed.

Written from vLLM's scheduler and the design, apart from `lengthwise.simulate`. Shared is what a
policy decides: its rank (as plain Python), the guards and the choice of swaps.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthwise.policy.discipline import Discipline
from lengthwise.policy.guards import OVERDUE, TIERS, tier
from lengthwise.policy.remaining import expected_remaining
from lengthwise.policy.select import SWAP_EVERY, Engine, choose_swaps
from lengthwise.request import RUNNING, WAITING


@dataclass(eq=False)
class Job:
    index: int
    output: int
    row: Any  # its REQUEST
    age: int = 0
    computed: int = 0
    scheduled: int = 0
    blocks: list[int] = field(default_factory=list)
    started: float = math.nan
    tokens: list[float] = field(default_factory=list)  # when each came
    key: tuple[int, float] = (0, 0.0)

    @property
    def known(self) -> int:
        return int(self.row.prompt_tokens) + self.age


class PlainEngine:
    def __init__(self, discipline: Discipline, limits: Any, blocks: int, terms: Any) -> None:
        self.policy, self.limits, self.terms, self.free = (
            discipline,
            limits,
            terms,
            [*range(blocks)],
        )
        self.holds: dict[int, tuple[int, int]] = {}  # block: (request, place)
        self.running, self.waiting, self.admitted = [], [], []  # type: list[Job], list[Job], list[int]
        self.now, self.step, self.head, self.mean = 0.0, 0, 0, 0.0

    def run(self, coming: list[Job]) -> None:
        coming = list(coming)
        while coming or self.running or self.waiting:
            if not self.running and not self.waiting:
                self.now = max(self.now, coming[0].row.arrival_s)
            while coming and coming[0].row.arrival_s <= self.now:
                job = coming.pop(0)
                job.row.sequence, job.row.last_step = job.index + 1, self.step
                self.waiting.append(job)
            self.take_step()

    def take_step(self) -> None:
        self.step, self.ranked = self.step + 1, False
        front, budget, preempted = self.swap(), self.limits["token_budget"], False
        if not self.policy.is_fcfs and len(self.free) < self.wanted():
            self.rank()
            middle = {job: job.known - job.computed > 1 for job in self.running}
            self.running.sort(key=lambda j: (j.row.priority, middle[j], *j.key, j.row.sequence))
        for job in list(self.running):
            if budget <= 0 or job not in self.running:
                break
            tokens = min(job.known - job.computed, budget)
            while job in self.running and self.extra(job, tokens) > len(self.free):
                self.preempt(self.running[-1])
                preempted = True
            if job in self.running:
                self.compute(job, tokens)
                budget -= tokens
        old = list(self.running)
        if not preempted:
            self.admit(budget, front)
        ran = [job for job in self.running if job.scheduled]
        decode = sum(job.scheduled == 1 and job in old for job in ran)
        prefill = [job for job in ran if job.scheduled > 1 or job not in old]
        pairs = sum(j.scheduled * (j.computed - 0.5 * (j.scheduled - 1)) for j in prefill)
        new, kv = sum(job.scheduled for job in prefill), sum(job.computed for job in ran)
        self.now += float(self.terms @ np.array([1, new, decode, kv, len(ran), pairs]))
        self.mean += max(0.002, 1 / self.step) * (new + decode - self.mean)
        for job in ran:
            job.row.last_step = self.step
            job.row.promoted = max(job.row.promoted - 1, 0)
            job.scheduled = 0
            if job.computed == job.known:
                job.age += 1
                job.tokens.append(self.now)
                if job.age == job.output:
                    self.leave(job)

    def swap(self) -> list[Job] | None:
        slots, policy = self.limits["slots"] - len(self.running), self.policy
        due = self.step % SWAP_EVERY == 0 and self.waiting and self.running
        if not (policy.preempts and due):
            return None
        self.rank()
        queue, size = self.in_order()[: 4 * self.limits["slots"]], self.limits["block_size"]
        may = [
            job.known - job.computed == 1 <= job.age
            and job.row.preemptions < policy.max_preemptions
            and any(job.key > other.key for other in queue[: slots + policy.max_swaps])
            for job in self.running
        ]
        if not any(may):
            return None
        all_ = self.running + queue
        computed = [job.computed for job in self.running]
        known = [job.known for job in self.running]
        growth = sum(
            math.ceil(k / size) - math.ceil(c / size) for k, c in zip(known, computed, strict=True)
        )
        step_s = self.terms[0] + (self.terms[2] + self.terms[4]) * len(computed)
        engine = Engine(
            slots, len(self.free) - growth - self.limits["watermark_blocks"],
            self.limits["token_budget"] - sum(known) + sum(computed), size,
            bool(self.limits["caching"]), len(self.running) + len(self.waiting),
            step_s + self.terms[3] * sum(computed), self.terms[1], self.mean,
        )  # fmt: skip
        victims, admitted = choose_swaps(
            policy.preemption == "greedy", policy.max_swaps,
            np.array([job.key[0] for job in all_]), np.array([job.key[1] for job in all_]),
            np.array([job.row for job in all_]), np.arange(len(self.running), len(all_)),
            np.arange(len(self.running)), np.array(may),
            np.array([len(job.blocks) for job in self.running]), engine,
        )  # fmt: skip
        for row in victims:
            all_[row].row.preemptions += 1
            self.preempt(all_[row])
        return queue[:admitted] if len(victims) else None

    def admit(self, budget: int, order: list[Job] | None) -> None:
        while budget > 0 and len(self.running) < self.limits["slots"] and self.waiting:
            if order is None:
                self.rank()
                order = self.in_order()
            watermark = self.limits["watermark_blocks"] if self.running else 0
            if not order or self.extra(order[0], order[0].known) + watermark > len(self.free):
                return
            job = order.pop(0)
            where = {held: block for block, held in self.holds.items()}
            job.blocks = [where[job.index, place] for place in range(self.cached(job))]
            self.free = [block for block in self.free if block not in job.blocks]
            job.computed, job.row.state = len(job.blocks) * self.limits["block_size"], RUNNING
            self.waiting.remove(job)
            self.running.append(job)
            self.admitted.append(int(job.row.arrival_index))
            guards = self.policy.guards[0]
            if job.row.promoted == 0 and job.row.idle_steps >= guards["starvation_threshold"]:
                job.row.promoted = guards["starvation_quantum"]
            job.started = self.now if math.isnan(job.started) else job.started
            tokens = min(job.known - job.computed, budget)
            self.compute(job, tokens)
            budget -= tokens

    def extra(self, job: Job, tokens: int) -> int:
        return math.ceil((job.computed + tokens) / self.limits["block_size"]) - len(job.blocks)

    def wanted(self) -> int:
        size = self.limits["block_size"]
        wanted = sum(math.ceil((job.known - job.computed) / size) for job in self.running)
        return min(wanted, len(self.running) + math.ceil(self.limits["token_budget"] / size))

    def cached(self, job: Job) -> int:
        hits, held = 0, set(self.holds.values())
        while (hits + 1) * self.limits["block_size"] < job.known and (job.index, hits) in held:
            hits += 1
        return hits

    def compute(self, job: Job, tokens: int) -> None:
        taken = [self.free.pop(0) for _ in range(self.extra(job, tokens))]
        self.holds = {block: held for block, held in self.holds.items() if block not in taken}
        job.blocks, job.computed, job.scheduled = job.blocks + taken, job.computed + tokens, tokens
        for place in range(job.computed // self.limits["block_size"] * self.limits["caching"]):
            self.holds[job.blocks[place]] = (job.index, place)

    def preempt(self, job: Job) -> None:
        self.leave(job)
        self.head -= 1
        job.row.state, job.row.sequence, job.row.age = WAITING, self.head, job.age
        job.row.computed_tokens, job.row.last_step, job.computed = 0, self.step, 0
        self.waiting.append(job)

    def leave(self, job: Job) -> None:
        for block in reversed(job.blocks):
            self.free.insert(len(self.free) if block in self.holds else 0, block)
        job.blocks = []
        self.running.remove(job)

    def rank(self) -> None:
        for job in () if self.ranked else self.running + self.waiting:
            row, cached = job.row, self.cached(job) * self.limits["block_size"]
            if row.state == RUNNING:
                row.age, row.computed_tokens = job.age, job.computed
            elif self.policy.policy.reads_prefix_cache:
                row.cached_tokens = cached
            row.wait_s, row.idle_steps = self.now - row.arrival_s, self.step - row.last_step
            if row.age > 0:
                row.remaining = expected_remaining(
                    row.expected, row.low, row.median, row.high, row.age
                )
            if row.state == WAITING:
                row.overtaken += sum(index > row.arrival_index for index in self.admitted)
            place = tier.py_func(row, self.policy.guards.view(np.recarray)[0])
            rank, values = self.policy.policy.rank.py_func, self.policy.parameters
            overdue = place == OVERDUE
            value = (
                row.arrival_index if overdue else rank(row, self.now, values.view(np.recarray)[0])
            )
            job.key = (int(row.priority) * TIERS + place, float(value))
        self.admitted = self.admitted if self.ranked else []
        self.ranked = True

    def in_order(self) -> list[Job]:
        return sorted(self.waiting, key=lambda job: (*job.key, job.row.sequence))
