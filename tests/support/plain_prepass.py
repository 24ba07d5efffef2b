"""What is decided before a step, in plain Python: written from the design, with sorted lists.

Shared with the product is what a swap gains (`swap_gain`) and what fits (`fitting`), which have
tests of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.policy.memory import fitting
from lengthwise.policy.order import interleave
from lengthwise.policy.prepass import OFTEN
from lengthwise.policy.select import Swap, swap_gain
from lengthwise.request import WAITING


class PlainPrepass:
    """One step's decision.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER; `may_make_way` says what the engine would answer of each.
        table: array of REQUEST.
        groups: of the requests.
        ranks: of the requests.
        blocked: rows that the engine could not admit now.
    """

    def __init__(
        self,
        rules: Any,
        facts: Any,
        runners: Any,
        table: Any,
        groups: Any,
        ranks: Any,
        blocked: Any,
    ) -> None:
        self.rules, self.facts, self.runners, self.table = rules, facts, runners, table
        self.blocked = blocked
        self.key = [(groups[i], ranks[i]) for i in range(len(table))]
        self.predicted = True

    def decide(self) -> tuple[list[int], list[int] | None, list[int]]:
        """Places of victims, the only rows that may come in, and places of those that stay."""
        facts, rules = self.facts, self.rules
        queue = self.in_order()
        victims: list[int] = []
        front = None
        busy = facts.running and facts.waiting
        if rules.preempts and facts.may_swap and busy and facts.step % 8 == 0:
            shown = queue[: 4 * (facts.free_slots + facts.running)]
            victims, admitted = self.swaps([row for row in shown if row not in self.blocked])
            front = admitted if victims else None
        first = queue[: facts.free_slots]
        held_up = not facts.running and bool(first) and first[0] in self.blocked
        if front is None and rules.memory_growth and first and not held_up:
            rows, growth = np.array(first, np.int64), rules.memory_growth
            size, free = facts.block_size, facts.free_blocks
            count = fitting(self.table, self.runners, rows, growth, free, size)
            front = first[:count] if count < len(first) else None
        kept = [place for place in range(len(self.runners)) if place not in victims]
        free = facts.free_blocks + sum(self.runners[place].freed_blocks for place in victims)
        wanted = sum(
            self.blocks(self.runners[p].wanted_tokens + facts.lookahead_tokens) for p in kept
        )
        if free < min(wanted, len(kept) + self.blocks(facts.token_budget)):
            self.predicted = any(self.table[self.runners[p].row].predicted for p in kept)
            kept.sort(key=self.last_to_go)
        return victims, front, kept

    def in_order(self) -> list[int]:
        waiting = [row for row in range(self.facts.rows) if self.table[row].state == WAITING]
        by_policy = sorted(waiting, key=lambda row: (*self.key[row], self.table[row].sequence))
        if self.rules.blend == 1.0:
            return by_policy
        queued = sorted(
            waiting, key=lambda row: (self.table[row].priority, self.table[row].sequence)
        )
        both = np.array(by_policy, np.int64), np.array(queued, np.int64)
        return interleave(*both, self.rules.blend, self.facts.admissions).tolist()

    def last_to_go(self, place: int) -> tuple[Any, ...]:
        runner = self.runners[place]
        row = self.table[runner.row]
        group, rank = self.key[runner.row]
        saved = 0.0
        if self.rules.predicts and self.predicted and group % TIERS != OVERDUE:
            saved = self.saved(row, row.computed_tokens)
            if row.memory_preemptions >= OFTEN:
                saved = -math.inf
        return row.priority, runner.prefilling, group, saved, rank, row.sequence

    def saved(self, request: Any, lost: int) -> float:
        others = self.facts.running + self.facts.waiting
        return float(request.remaining * self.facts.step_s - others * lost * self.facts.prefill_s)

    def blocks(self, tokens: int) -> int:
        return math.ceil(tokens / self.facts.block_size)

    def need(self, row: int) -> int:
        known = self.table[row].prompt_tokens + self.table[row].age
        return self.blocks(known + 1 + self.facts.lookahead_tokens)

    def uncached(self, row: int) -> int:
        request = self.table[row]
        return max(int(request.prompt_tokens + request.age - request.cached_tokens), 1)

    def swaps(self, queue: list[int]) -> tuple[list[int], list[int]]:
        """Places of the victims and the rows that get in."""
        facts, rules = self.facts, self.rules
        best = min(
            (self.key[row] for row in queue[: facts.free_slots + rules.max_swaps]), default=None
        )
        budget = facts.token_budget - sum(int(runner.wanted_tokens) for runner in self.runners)
        blocks = facts.free_blocks - facts.watermark_blocks
        for runner in self.runners:
            after = runner.computed_tokens + runner.wanted_tokens + facts.lookahead_tokens
            blocks -= self.blocks(after) - self.blocks(runner.computed_tokens)
        self.ample = max(blocks, 0)
        slots, admitted, victims = facts.free_slots, [], []
        while queue and slots > 0 and budget > 0 and self.need(queue[0]) <= blocks:
            row = queue.pop(0)
            blocks, budget, slots = blocks - self.need(row), budget - self.uncached(row), slots - 1
            admitted.append(row)
        held = [int(runner.row) for runner in self.runners]
        free = [
            runner.may_make_way
            and self.table[runner.row].preemptions < rules.max_preemptions
            and best is not None
            and self.key[runner.row] > best
            for runner in self.runners
        ]
        while queue and budget > 0 and len(victims) < rules.max_swaps:
            place = self.victim(queue, held, free, blocks)
            if place is None:
                break
            newcomer, victim = queue.pop(0), held[place]
            victims.append(place)
            admitted.append(newcomer)
            blocks += int(self.runners[place].freed_blocks) - self.need(newcomer)
            budget += 1 - self.uncached(newcomer)
            held[place], free[place] = newcomer, False
            back = self.returns(queue, victim)
            if back == 0:
                break
            queue.insert(back, victim)
        return victims, admitted

    def returns(self, queue: list[int], row: int) -> int:
        return sum(
            all(self.key[o] < self.key[row] for o in queue[: k + 1]) for k in range(len(queue))
        )

    def victim(
        self, queue: list[int], held: list[int], free: list[bool], blocks: int
    ) -> int | None:
        facts, newcomer = self.facts, queue[0]
        may = [
            place
            for place, row in enumerate(held)
            if free[place]
            and self.key[row] > self.key[newcomer]
            and self.runners[place].freed_blocks + blocks >= self.need(newcomer)
        ]
        if not may or self.rules.greedy:
            return max(may, key=lambda place: self.key[held[place]], default=None)

        def promise(place: int) -> float:
            request = self.table[held[place]]
            lost = request.computed_tokens
            if facts.caching:
                lost = lost % facts.block_size
            return self.saved(request, lost)

        chosen = max(may, key=promise)
        swap = Swap(
            chosen,
            self.returns(queue[1:], held[chosen]),
            context=float(self.table[held[chosen]].computed_tokens),
            offloaded=0.0,
            newcomer_tokens=float(self.uncached(newcomer)),
            free_blocks=float(self.ample),
        )
        running = np.array([self.table[row].remaining for row in held])
        waiting = np.array([self.table[row].remaining for row in queue])
        gain = swap_gain(facts, running, waiting, swap)
        return chosen if gain > 0.0 else None
