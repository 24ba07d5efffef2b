"""Who is looked at before its turn, in plain Python: from the page on pausing, with lists."""

from __future__ import annotations

import math
from typing import Any

from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.request import BY_PROBE, LENT, LOOKED, LOOKING


class PlainLooks:
    """One step's looks; `rows` are the table's, `places` the runners'.

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
        self.rank = ranks
        self.key = [(groups[i], ranks[i], table[i].sequence) for i in range(len(table))]

    def row(self, place: int) -> Any:
        return self.table[self.runners[place].row]

    def ended(self) -> list[int]:
        """Places of those that have been read."""
        return [
            p
            for p, runner in enumerate(self.runners)
            if not runner.paused
            and self.row(p).look == LOOKING
            and runner.age > 0
            and runner.may_make_way
        ]

    def return_slots(self) -> list[int]:
        """Places of those that get back the slots that they lent."""
        free = self.facts.free_slots + len(self.ended())
        run = [p for p, r in enumerate(self.runners) if not r.paused and p not in self.ended()]
        back: list[int] = []
        for p, runner in enumerate(self.runners):
            if not runner.paused or self.row(p).look != LENT or len(back) == free:
                continue
            if self.adapters(run + back, [], self.row(p)):
                back.append(p)
        return back

    def peek(
        self, waiting: list[int], kept: list[int], front: list[int]
    ) -> tuple[list[int], list[int]]:
        """Places of those that lend their slots, and rows that come in to be looked at."""
        facts, runners = self.facts, self.runners
        blocks = facts.free_blocks - sum(self.growth(p) for p in kept)
        blocks -= sum(self.need(row) for row in front)
        tokens = facts.token_budget - sum(int(runners[p].wanted_tokens) for p in kept)
        tokens -= sum(self.uncached(row) for row in front)
        places = facts.free_places - len(front)
        left = [self.row(p).remaining for p in kept] + [self.table[r].remaining for r in front]
        lenders: list[int] = []
        looks: list[int] = []
        for row in waiting:
            request = self.table[row]
            if len(looks) == self.rules.max_swaps or places <= len(kept) + len(front):
                break
            known = request.age > 0 or request.predicted == BY_PROBE
            dear = facts.token_work * self.uncached(row) > 0.2 * request.remaining
            if row in front or known or dear:
                continue
            runs = [p for p in kept if p not in lenders]
            may = [
                p
                for p in runs
                if not runners[p].paused
                and runners[p].may_make_way
                and self.row(p).look != LOOKING
                and self.rank[runners[p].row] > -math.inf
                and self.key[runners[p].row][0] % TIERS != OVERDUE
                and self.adapters([q for q in runs if q != p], front + looks, request)
            ]
            if not may:
                break
            lender = max(may, key=lambda p: self.key[runners[p].row])
            steps = float(request.remaining)
            growth = 3.0 * (steps + sum(min(each, steps) for each in left))
            room = blocks + self.growth(lender) - facts.watermark_blocks
            if self.need(row) > room - self.held(growth) or tokens <= 0:
                break
            blocks += self.growth(lender) - self.need(row)
            tokens += int(runners[lender].wanted_tokens) - self.uncached(row)
            places -= 1
            lenders.append(lender)
            looks.append(row)
        return lenders, looks

    def adapters(self, places: list[int], rows: list[int], request: Any) -> bool:
        """Whether there is room for the adapter of one more."""
        held = {int(self.row(p).adapter) for p in places}
        held |= {int(self.table[row].adapter) for row in rows}
        held.discard(0)
        most = self.facts.max_adapters
        return most == 0 or request.adapter == 0 or len(held | {int(request.adapter)}) <= most

    def held(self, tokens: float) -> int:
        return math.ceil(tokens / self.facts.block_size)

    def growth(self, place: int) -> int:
        runner = self.runners[place]
        after = runner.computed_tokens + runner.wanted_tokens + self.facts.lookahead_tokens
        return self.held(after) - self.held(runner.computed_tokens)

    def need(self, row: int) -> int:
        request = self.table[row]
        return self.held(request.prompt_tokens + request.age + 1 + self.facts.lookahead_tokens)

    def uncached(self, row: int) -> int:
        request = self.table[row]
        return max(int(request.prompt_tokens + request.age - request.cached_tokens), 1)


def settled(look: int, ran: bool, runs: bool, ended: bool, returned: bool) -> int:
    """What `look` is after a step's choice among those that run and are paused."""
    if runs:
        return 0 if not ran or ended else look
    if ended:
        return LOOKED
    return 0 if ran or returned else look
