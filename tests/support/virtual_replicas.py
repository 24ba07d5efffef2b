"""Several of vLLM's engine cores in virtual time behind a router."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lengthwise.emulate.driver import Asked, Served, VirtualEngine
from tests.support.plain_replicas import PlainFleet, Sent

#: Which engine a request goes to, by its place, its arrival in s and, for each engine, the places
#: of the requests there that have not ended by now; and how all were served so far.
Route = Callable[[int, float, Sequence[Sequence[int]], Sequence[Served]], int]


def serve(engines: Sequence[VirtualEngine], asked: Sequence[Asked], route: Route) -> list[Served]:
    """Serve requests that arrive at their times; a client's router hears of an end as it comes."""
    served = [Served() for _ in asked]
    sent: list[list[int]] = [[] for _ in engines]
    for engine in engines:
        engine.begin()
    for place, each in enumerate([*asked, None]):
        arrival_s = math.inf if each is None else each.arrival_s
        while True:
            behind = min(engines, key=lambda engine: engine.now_s if engine.busy else math.inf)
            if not behind.busy or behind.now_s >= arrival_s:
                break
            behind.step()
        if each is None:
            break
        unfinished = [
            [k for k in places if served[k].finished is None or served[k].finish_s > arrival_s]
            for places in sent
        ]
        chosen = route(place, arrival_s, unfinished, served)
        if not engines[chosen].busy:
            engines[chosen].sleep_until(arrival_s)
        sent[chosen].append(place)
        engines[chosen].send(each, served[place], arrival_s)
    return served


def router(
    name: str, expected: np.ndarray, seed: int, engines: int, slots: int, shortest_first: bool
) -> Route:
    """The routers of the simulator, written again."""
    random = np.random.default_rng(seed)
    first = random.integers(engines, size=len(expected))
    second = (first + 1 + random.integers(engines - 1, size=len(expected))) % engines
    fleet = PlainFleet(engines, slots, shortest_first)
    sent: dict[int, Sent] = {}

    def least_wait(
        place: int,
        arrival_s: float,
        unfinished: Sequence[Sequence[int]],
        served: Sequence[Served],
    ) -> int:
        for k in range(engines):
            for each in [each for each in sent if sent[each].replica == k]:
                if each not in unfinished[k]:
                    fleet.release(sent.pop(each), served[each].finish_s)
        chosen = fleet.choose(expected[place], arrival_s)
        if name == "predicted-wait-of-two":
            chosen = min(
                (first[place], second[place]),
                key=lambda k: (fleet.wait(k, expected[place], arrival_s), fleet.outstanding(k)),
            )
        sent[place] = fleet.book(chosen, expected[place], arrival_s)
        return chosen

    def route(
        place: int,
        arrival_s: float,
        unfinished: Sequence[Sequence[int]],
        served: Sequence[Served],
    ) -> int:
        outstanding = [len(places) for places in unfinished]
        if name.startswith("predicted-wait"):
            return least_wait(place, arrival_s, unfinished, served)
        if name == "round-robin":
            return place % engines
        if name == "least-outstanding":
            return int(np.argmin(outstanding))
        if name == "power-of-two":
            drawn = (first[place], second[place])
            return int(min(drawn, key=lambda engine: outstanding[engine]))
        return int(np.argmin([expected[list(places)].sum() for places in unfinished]))

    return route
