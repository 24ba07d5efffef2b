"""Who runs, who is paused and who is freed, in plain Python: from the page on pausing, with lists.

Shared with the product is what a swap gains (`steps_saved`) and which swaps pay for a load
(`choose_swaps`), which have tests of their own.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.policy.order import Order
from lengthwise.policy.select import Room, choose_swaps, steps_saved


class PlainChoice:
    """One step's choice; `rows` are the table's, `places` the runners'.

    Args:
        rules: a RULES record.
        facts: a FACTS record.
        runners: array of RUNNER.
        table: array of REQUEST.
        groups: of the requests.
        ranks: of the requests.
    """

    def __init__(
        self, rules: Any, facts: Any, runners: Any, table: Any, groups: Any, ranks: Any
    ) -> None:
        self.rules, self.facts, self.runners, self.table = rules, facts, runners, table
        self.groups = groups
        self.whole_order = Order(table, groups, ranks)
        self.rank = [(groups[i], ranks[i]) for i in range(len(table))]
        self.key = [(*self.rank[i], table[i].sequence) for i in range(len(table))]
        everyone = range(len(runners))
        self.run = [p for p in everyone if not runners[p].paused]
        self.rest = sorted((p for p in everyone if runners[p].paused), key=self.order)
        self.began, self.new = list(self.run), [*self.rest]
        self.back: list[int] = []  # places of those that go on
        self.gone: list[int] = []  # places of those that are paused now
        self.freed: list[int] = []
        self.front: list[int] = []  # rows that come in
        self.left_before = int(facts.leaving)
        self.leaving = 0  # of those that are paused now, to be preempted in the next step
        self.slots, self.places = facts.free_slots, facts.free_places
        self.blocks = facts.free_blocks - sum(self.growth(p) for p in self.run)
        self.tokens = facts.token_budget - sum(int(runners[p].wanted_tokens) for p in self.run)

    def choose(
        self, waiting: list[int], swaps: bool
    ) -> tuple[list[int], list[int], list[int], list[int]]:
        self.make_room(0)
        left = self.fill(list(waiting))
        if swaps:
            self.end_stalls()
            self.swap(left)
            if self.may_load():
                self.load(waiting)
        stay = [p for p in self.began if p not in self.gone + self.freed]
        return self.freed, stay + self.back, self.rest + self.gone, self.front

    def fill(self, waiting: list[int]) -> list[int]:
        """Free slots, in one order. Returns who still waits behind."""
        candidates = list(self.rest)
        while self.slots > 0 and (candidates or waiting):
            candidates = [p for p in candidates if p in self.rest]
            if waiting and not (candidates and self.order(candidates[0]) < self.key[waiting[0]]):
                row = waiting.pop(0)
                if not self.adapter_fits(row):
                    continue
                if self.comes_in(row, 0):
                    self.slots -= 1
                else:
                    waiting = []
                continue
            if not candidates:
                continue
            place = candidates.pop(0)
            if not self.adapter_fits(self.row(place)):
                continue
            self.make_room(self.growth(place), place)
            if self.growth(place) > self.blocks and (self.began or self.back or self.front):
                break
            self.goes_on(place)
            self.slots -= 1
            self.tokens -= int(self.runners[place].wanted_tokens)
        return waiting

    def end_stalls(self) -> None:
        """Who is overdue takes the place of the last in order."""
        for place in list(self.rest):
            if self.groups[self.row(place)] % TIERS != OVERDUE or place not in self.rest:
                continue
            victims = [p for p in self.may_pause(self.row(place)) if p not in self.back]
            if not victims:
                continue
            victim = max(victims, key=self.order)
            self.blocks += self.growth(victim)
            self.make_room(self.growth(place), place)
            if self.growth(place) > self.blocks:
                self.blocks -= self.growth(victim)
                continue
            self.goes_on(place)
            self.gone.append(victim)

    def swap(self, waiting: list[int]) -> None:
        """Others swap places where that pays."""
        most = 4 * (self.facts.running + self.facts.free_slots)
        queue: list[tuple[int, int]] = [(self.row(p), p) for p in self.rest]
        queue = sorted(queue + [(row, -1) for row in waiting], key=lambda one: self.key[one[0]])
        queue = queue[:most]
        running: list[tuple[int, float]] = [  # place, or -1 for one that must stay; what is left
            (p, float(self.table[self.row(p)].remaining))
            for p in sorted([p for p in self.began if p not in self.gone] + self.back)
        ]
        running += [(-1, self.work(row)) for row in self.front]
        opened, swaps = True, 0
        while queue and swaps < self.rules.max_swaps:
            row, place = queue[0]
            if place >= 0 and place in self.gone:
                break
            at = None
            if place >= 0 or opened:
                at = self.pays(queue, running)
                if at is None:
                    break
            queue.pop(0)
            if at is None:
                continue
            victim = running[at][0]
            spare = self.growth(victim)
            if place < 0:
                steps = float(self.table[row].remaining)
                others = [min(left, steps) for k, (_, left) in enumerate(running) if k != at]
                aside = self.held(3.0 * sum(others, steps))
                if self.facts.offloads_answers and aside <= self.facts.host_blocks:
                    aside = 0
                opened = self.comes_in(row, spare - aside)
                if not opened:
                    continue
                left = self.work(row)
            else:
                if self.growth(place) > self.blocks + spare:
                    continue
                self.goes_on(place)
                left = float(self.table[row].remaining)
            self.blocks += spare
            self.tokens += int(self.runners[victim].wanted_tokens)
            self.gone.append(victim)
            running[at] = (-1, left)
            swaps += 1
            back = self.returns([one[0] for one in queue], self.row(victim))
            if back == 0:
                break
            queue.insert(back, (self.row(victim), victim))

    def may_load(self) -> bool:
        offloads = self.facts.host_blocks > 0
        offloads = offloads and bool(self.facts.offloads_answers or not self.rules.greedy)
        return offloads and (self.left_before > 0 or self.facts.step % 8 == 0)

    def load(self, waiting: list[int]) -> None:
        """Newcomers take the memory of those that can load theirs."""
        runs = sorted([p for p in self.began if p not in self.gone] + self.back)
        adapters = {0} | {int(self.table[self.row(p)].adapter) for p in runs}
        holders = runs + self.rest[: max(self.slots, 0)]
        taken = np.array(holders, np.int64)
        asked = self.runners[taken].copy()
        asked["may_make_way"] &= asked["freed_blocks"] > 0
        asked["may_make_way"] &= (
            self.table["preemptions"][asked["row"]] < self.rules.max_preemptions
        )
        overdue = self.groups[asked["row"]] % TIERS == OVERDUE
        asked["may_make_way"] &= ~(asked["paused"] & overdue)
        if self.left_before > 0:
            asked["may_make_way"] &= ~asked["in_flight"]
        rows = []
        for row in waiting[: self.facts.free_slots + self.rules.max_swaps]:
            if row in self.front or not self.adapter_fits(row):
                continue
            if self.facts.max_adapters > 0 and int(self.table[row].adapter) not in adapters:
                break
            rows.append(row)
        blocks = self.blocks - self.facts.watermark_blocks
        swaps = int(self.rules.max_swaps - len(self.gone))
        slots = int(min(self.slots, self.places))
        room = Room(slots, int(blocks), int(self.tokens), swaps)
        victims, admitted = choose_swaps(
            self.rules, self.facts, asked, self.whole_order, np.array(rows, np.int64), room
        )
        at_once = admitted - len(victims)
        self.front += rows[:at_once]
        for newcomer, victim in zip(rows[at_once:admitted], victims, strict=True):
            place = holders[victim]
            if self.runners[place].in_flight:
                self.gone.append(place)
                self.leaving += 1
            elif self.leaving == 0:
                for group in (self.rest, self.back):
                    if place in group:
                        group.remove(place)
                self.freed.append(place)
                self.front.append(newcomer)

    def pays(self, queue: list[tuple[int, int]], running: list[tuple[int, float]]) -> int | None:
        newcomer = queue[0][0]
        jobs = [self.work(r) if p < 0 else float(self.table[r].remaining) for r, p in queue]
        may = self.may_pause(newcomer)
        able = [k for k, (p, _) in enumerate(running) if p in may and p not in self.back]
        if not able:
            return None
        chosen = max(able, key=lambda k: running[k][1])
        if self.rules.greedy:
            return chosen
        if running[chosen][1] < 1.25 * jobs[0]:
            return None
        saved, _ = steps_saved(
            np.array([left for _, left in running]),
            np.array(jobs),
            chosen,
            self.returns([one[0] for one in queue[1:]], self.row(running[chosen][0])),
        )
        return chosen if saved > -1e-6 else None

    def row(self, place: int) -> int:
        return int(self.runners[place].row)

    def order(self, place: int) -> tuple[Any, ...]:
        return self.key[self.row(place)]

    def may_pause(self, row: int) -> list[int]:
        """Places of those that may be paused for a row and have begun before this step."""
        return [
            p
            for p in self.began
            if p not in self.gone
            and self.runners[p].may_make_way
            and self.rank[self.row(p)] > self.rank[row]
            and self.adapter_fits(row, p)
        ]

    def returns(self, rows: list[int], row: int) -> int:
        """Where a row goes among others, ahead of its equals."""
        return sum(
            all(self.rank[o] < self.rank[row] for o in rows[: k + 1]) for k in range(len(rows))
        )

    def held(self, tokens: float) -> int:
        return math.ceil(tokens / self.facts.block_size)

    def growth(self, place: int) -> int:
        runner = self.runners[place]
        after = runner.computed_tokens + runner.wanted_tokens + self.facts.lookahead_tokens
        return self.held(after) - self.held(runner.computed_tokens)

    def uncached(self, row: int) -> int:
        request = self.table[row]
        return max(int(request.prompt_tokens + request.age - request.cached_tokens), 1)

    def work(self, row: int) -> float:
        return float(self.table[row].remaining + self.facts.token_work * self.uncached(row))

    def comes_in(self, row: int, spare: int) -> bool:
        request = self.table[row]
        need = self.held(request.prompt_tokens + request.age + 1 + self.facts.lookahead_tokens)
        short = need > self.blocks + spare - self.facts.watermark_blocks
        if short or self.places <= 0 or self.tokens <= 0:
            return False
        self.blocks, self.places = self.blocks - need, self.places - 1
        self.tokens -= self.uncached(row)
        self.front.append(row)
        return True

    def goes_on(self, place: int) -> None:
        self.rest.remove(place)
        self.back.append(place)
        self.blocks -= self.growth(place)

    def make_room(self, needed: int, spared: int = -1) -> None:
        """The last in order are freed until there are so many blocks."""
        for place in reversed(list(self.rest)):
            if self.blocks >= needed:
                return
            if place != spared and self.runners[place].may_make_way:
                self.rest.remove(place)
                self.freed.append(place)
                self.blocks += int(self.runners[place].freed_blocks)
                self.places += 1

    def adapter_fits(self, row: int, leaves: int = -1) -> bool:
        adapter = self.table[row].adapter
        if self.facts.max_adapters == 0 or adapter == 0:
            return True
        runs = [p for p in self.began if p not in self.gone and p != leaves] + self.back
        rows = [self.row(p) for p in runs] + self.front
        held = {int(self.table[r].adapter) for r in rows} - {0}
        return adapter in held or len(held) < self.facts.max_adapters
