"""The router's copy of its replicas and the predicted wait, written again without arrays."""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field


@dataclass(eq=False)
class Sent:
    expected: float
    replica: int
    started_s: float | None = None


@dataclass
class PlainFleet:
    count: int
    slots: int
    shortest_first: bool
    company: float = 1.0
    sent: list[list[Sent]] = field(default_factory=list)
    elsewhere: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.02
    tokens: float = 1.0
    booked: float = 0.0
    booked_tokens: float = 0.0

    def __post_init__(self) -> None:
        self.sent = [[] for _ in range(self.count)]
        self.elsewhere = [(0, 0.0)] * self.count

    def book(self, replica: int, expected: float, now: float) -> Sent:
        sent = Sent(expected, replica)
        self.sent[replica].append(sent)
        self.booked_tokens = 0.99 * self.booked_tokens + expected
        self.booked = 0.99 * self.booked + 1.0
        self._start(replica, now)
        return sent

    def release(self, sent: Sent, now: float) -> None:
        self.sent[sent.replica].remove(sent)
        if sent.started_s is not None:
            self.seconds = 0.99 * self.seconds + max(now - sent.started_s, 0.0)
            self.tokens = 0.99 * self.tokens + sent.expected
        self._start(sent.replica, now)

    def hear(self, replica: int, count: int, work: float, now: float) -> None:
        self.elsewhere[replica] = count, work
        self._start(replica, now)

    def outstanding(self, replica: int) -> int:
        return len(self.sent[replica]) + self.elsewhere[replica][0]

    def work(self, replica: int) -> float:
        return sum(each.expected for each in self.sent[replica]) + self.elsewhere[replica][1]

    def wait(self, replica: int, expected: float, now: float) -> float:
        if self.outstanding(replica) < self.slots:
            return 0.0
        pace = self.seconds / self.tokens
        others, work = self.elsewhere[replica]
        mean = work / others if others else 0.0
        running = [
            max(pace * each.expected - (now - each.started_s), 0.05 * pace * each.expected)
            for each in self.sent[replica]
            if each.started_s is not None
        ][: self.slots]
        waiting = [each.expected for each in self.sent[replica] if each.started_s is None]
        free = min(self.slots - len(running), others)
        running += [0.5 * pace * mean] * free
        waiting += [mean] * (others - free)
        ahead = [each for each in waiting if not self.shortest_first or each <= expected]
        slots = running + [0.0] * (self.slots - len(running))
        heapq.heapify(slots)
        for each in ahead:
            heapq.heapreplace(slots, slots[0] + pace * each)
        return slots[0] + (len(waiting) - len(ahead)) * pace * expected / self.slots

    def choose(self, expected: float, now: float) -> int:
        costs = [self.wait(k, expected, now) for k in range(self.count)]
        best = min(range(self.count), key=lambda k: (costs[k], self.outstanding(k)))
        mean = self.booked_tokens / self.booked if self.booked else 1.0
        if min(costs) == 0.0 or expected <= 2.0 * mean:
            return best
        most = costs[best] + self.company * expected * self.seconds / self.tokens
        return max((k for k in range(self.count) if costs[k] <= most), key=self.work)

    def _start(self, replica: int, now: float) -> None:
        while True:
            waiting = [each for each in self.sent[replica] if each.started_s is None]
            running = len(self.sent[replica]) - len(waiting)
            if not waiting or running + self.elsewhere[replica][0] >= self.slots:
                return
            key = (lambda each: each.expected) if self.shortest_first else (lambda each: 0)
            min(waiting, key=key).started_s = now
