"""The simulated engine once more, in plain Python and without a thought for speed.

Written apart from `lengthwise.simulate`, from vLLM's scheduler and the design alone: lists instead
of arrays, `sorted` instead of heaps, and every block by the tokens that it holds. Only what a policy
decides is shared: its rank function (as plain Python), the guards and the choice of swaps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lengthwise.policy.discipline import Discipline
from lengthwise.policy.guards import OVERDUE, TIERS, tier
from lengthwise.policy.remaining import expected_remaining
from lengthwise.policy.select import SWAP_EVERY, Engine, choose_swaps
from lengthwise.request import RUNNING, WAITING, new_table

Key = tuple[int, int]  # what a block holds: (request, number of the block)


@dataclass(eq=False)
class Job:
    index: int
    arrival: float
    prompt: int
    output: int
    row: Any
    age: int = 0
    computed: int = 0
    scheduled: int = 0
    blocks: list[int] = field(default_factory=list)
    started: float = math.nan
    finished: float = math.nan
    tokens: list[float] = field(default_factory=list)
    key: tuple[int, float] = (0, 0.0)

    @property
    def known(self) -> int:
        return self.prompt + self.age


class PlainEngine:
    """One engine; `run` serves the jobs to the end."""

    def __init__(self, discipline: Discipline, limits: Any, blocks: int, terms: Any) -> None:
        self.discipline, self.limits, self.terms = discipline, limits, terms
        self.free = list(range(blocks))
        self.holds: dict[int, Key] = {}
        self.running: list[Job] = []
        self.waiting: list[Job] = []
        self.admitted: list[int] = []
        self.now, self.step, self.head, self.tail, self.mean = 0.0, 0, 0, 0, 0.0

    def run(self, jobs: list[Job]) -> None:
        coming = list(jobs)
        while coming or self.running or self.waiting:
            if not self.running and not self.waiting:
                self.now = max(self.now, coming[0].arrival)
            while coming and coming[0].arrival <= self.now:
                job = coming.pop(0)
                self.tail += 1
                job.row["sequence"], job.row["last_step"] = self.tail, self.step
                self.waiting.append(job)
            self.take_step()

    def take_step(self) -> None:
        self.step += 1
        self.ranked = False
        front = self.swap()
        if self.discipline.policy.name != "fcfs" and self.short_of_blocks():
            self.rank()
            middle = {job: job.known - job.computed > 1 for job in self.running}
            self.running.sort(
                key=lambda j: (j.row["priority"], middle[j], *j.key, j.row["sequence"])
            )
        old, budget, preempted = None, self.limits["token_budget"], False
        for job in list(self.running):
            if job not in self.running or budget <= 0:
                continue
            tokens = min(job.known - job.computed, budget)
            while self.need(job.computed + tokens) - len(job.blocks) > len(self.free):
                preempted = True
                if self.preempt(self.running[-1]) is job:
                    break
            if job not in self.running:
                break
            self.compute(job, tokens)
            budget -= tokens
        old = list(self.running)
        if not preempted:
            self.admit(budget, front)
        self.finish_step(old)

    def swap(self) -> list[Job] | None:
        due = self.step % SWAP_EVERY == 0 and self.waiting and self.running
        if not (self.discipline.preempts and due):
            return None
        self.rank()
        slots = self.limits["slots"] - len(self.running)
        queue = self.in_order()[: 4 * self.limits["slots"]]
        newcomers = queue[: slots + self.discipline.max_swaps]
        may = [
            job.known - job.computed == 1
            and job.age > 0
            and job.row["preemptions"] < self.discipline.max_preemptions
            and any(job.key > newcomer.key for newcomer in newcomers)
            for job in self.running
        ]
        if not any(may):
            return None
        together = self.running + queue
        table = np.array([job.row for job in together])
        keys = np.array([job.key[0] for job in together]), np.array([j.key[1] for j in together])
        growth = sum(self.need(job.known) - self.need(job.computed) for job in self.running)
        context = sum(job.computed for job in self.running)
        victims, admitted = choose_swaps(
            self.discipline.preemption == "greedy",
            self.discipline.max_swaps,
            *keys,
            table,
            np.arange(len(queue)) + len(self.running),
            np.arange(len(self.running)),
            np.array(may),
            np.array([len(job.blocks) for job in self.running]),
            Engine(
                slots,
                len(self.free) - growth - self.limits["watermark_blocks"],
                self.limits["token_budget"] - sum(j.known - j.computed for j in self.running),
                self.limits["block_size"],
                bool(self.limits["caching"]),
                len(self.running) + len(self.waiting),
                self.terms[0]
                + (self.terms[2] + self.terms[4]) * len(self.running)
                + self.terms[3] * context,
                self.terms[1],
                self.mean,
            ),
        )
        for row in victims:
            together[row].row["preemptions"] += 1
            self.preempt(together[row])
        return queue[:admitted] if len(victims) else None

    def admit(self, budget: int, front: list[Job] | None) -> None:
        order: list[Job] | None = front
        while budget > 0 and len(self.running) < self.limits["slots"] and self.waiting:
            if order is None:
                self.rank()
                order = self.in_order()
            if not order:
                return
            job, size = order[0], self.limits["block_size"]
            hits = self.cached(job)
            where = {key: block for block, key in self.holds.items()}
            watermark = self.limits["watermark_blocks"] if self.running else 0
            if self.need(job.known) + watermark > len(self.free):
                return
            order = order[1:]
            self.waiting.remove(job)
            self.running.append(job)
            job.blocks = [where[job.index, place] for place in range(hits)]
            self.free = [block for block in self.free if block not in job.blocks]
            job.computed = hits * size
            job.row["state"] = RUNNING
            self.admitted.append(int(job.row["arrival_index"]))
            guards = self.discipline.guards[0]
            starved = job.row["idle_steps"] >= guards["starvation_threshold"]
            if job.row["promoted"] == 0 and starved:
                job.row["promoted"] = guards["starvation_quantum"]
            if math.isnan(job.started):
                job.started = self.now
            tokens = min(job.known - job.computed, budget)
            self.compute(job, tokens)
            budget -= tokens

    def finish_step(self, old: list[Job]) -> None:
        prefill, decode, kv, pairs = 0, 0, 0, 0.0
        ran = [job for job in self.running if job.scheduled]
        for job in ran:
            kv += job.computed
            if job.scheduled == 1 and job in old:
                decode += 1
            else:
                prefill += job.scheduled
                pairs += job.scheduled * (job.computed - 0.5 * (job.scheduled - 1))
            if self.discipline.counts_steps:
                job.row["last_step"] = self.step
                job.row["promoted"] = max(job.row["promoted"] - 1, 0)
        terms = (1, prefill, decode, kv, len(ran), pairs)
        self.now += sum(cost * amount for cost, amount in zip(self.terms, terms, strict=True))
        self.mean += max(0.002, 1 / self.step) * (prefill + decode - self.mean)
        for job in ran:
            job.scheduled = 0
            if job.computed == job.known:
                job.age += 1
                job.tokens.append(self.now)
                if job.age == job.output:
                    job.finished = self.now
                    self.give_back(job)
                    self.running.remove(job)

    # Memory ---------------------------------------------------------------------------------

    def need(self, tokens: int) -> int:
        return math.ceil(tokens / self.limits["block_size"])

    def short_of_blocks(self) -> bool:
        wanted = sum(self.need(job.known - job.computed) for job in self.running)
        roomy = len(self.running) + self.need(self.limits["token_budget"])
        return len(self.free) < min(wanted, roomy)

    def cached(self, job: Job) -> int:
        hits, held = 0, set(self.holds.values())
        while (hits + 1) * self.limits["block_size"] < job.known and (job.index, hits) in held:
            hits += 1
        return hits

    def compute(self, job: Job, tokens: int) -> None:
        job.computed += tokens
        job.scheduled = tokens
        while len(job.blocks) < self.need(job.computed):
            block = self.free.pop(0)
            self.holds.pop(block, None)
            job.blocks.append(block)
        for place in range(job.computed // self.limits["block_size"]):
            if self.limits["caching"]:
                self.holds[job.blocks[place]] = (job.index, place)

    def preempt(self, job: Job) -> Job:
        self.give_back(job)
        self.running.remove(job)
        self.head -= 1
        job.row["state"], job.row["sequence"] = WAITING, self.head
        job.row["age"], job.row["computed_tokens"] = job.age, 0
        job.row["last_step"] = self.step
        job.computed, job.scheduled = 0, 0
        self.waiting.append(job)
        return job

    def give_back(self, job: Job) -> None:
        for block in reversed(job.blocks):
            self.free.insert(len(self.free) if block in self.holds else 0, block)
        job.blocks = []

    # Order ----------------------------------------------------------------------------------

    def rank(self) -> None:
        if self.ranked:
            return
        self.ranked = True
        for job in self.running:
            job.row["age"], job.row["computed_tokens"] = job.age, job.computed
        if self.discipline.policy.reads_prefix_cache:
            for job in self.waiting:
                job.row["cached_tokens"] = self.cached(job) * self.limits["block_size"]
        for job in self.running + self.waiting:
            row = job.row
            row["wait_s"] = self.now - row["arrival_s"]
            row["idle_steps"] = self.step - row["last_step"]
            if row["age"] > 0:
                fields = (float(row[name]) for name in ("expected", "low", "median", "high"))
                row["remaining"] = expected_remaining(*fields, float(row["age"]))
            if row["state"] == WAITING:
                row["overtaken"] += sum(index > row["arrival_index"] for index in self.admitted)
            place = tier.py_func(row, self.discipline.guards.view(np.recarray)[0])
            rank = float(row["arrival_index"])
            if place != OVERDUE:
                function = self.discipline.policy.rank.py_func
                rank = function(row, self.now, self.discipline.parameters.view(np.recarray)[0])
            job.key = (int(row["priority"]) * TIERS + place, rank)
        self.admitted = []

    def in_order(self) -> list[Job]:
        return sorted(self.waiting, key=lambda job: (*job.key, job.row["sequence"]))
