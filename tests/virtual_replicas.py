"""Several of vLLM's engine cores in virtual time behind a router."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from lengthwise.emulate.driver import Asked, Served, VirtualEngine

#: Which engine a request goes to, by its place and, for each engine, the places of the requests
#: there that have not ended by now.
Route = Callable[[int, Sequence[Sequence[int]]], int]


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
        chosen = route(place, unfinished)
        if not engines[chosen].busy:
            engines[chosen].sleep_until(arrival_s)
        sent[chosen].append(place)
        engines[chosen].send(each, served[place], arrival_s)
    return served


def router(name: str, expected: np.ndarray, seed: int, engines: int) -> Route:
    """The routers of the simulator, written again."""
    coins = np.random.default_rng(seed).integers(engines, size=(len(expected), 2))

    def route(place: int, unfinished: Sequence[Sequence[int]]) -> int:
        outstanding = [len(places) for places in unfinished]
        if name == "round-robin":
            return place % engines
        if name == "least-outstanding":
            return int(np.argmin(outstanding))
        if name == "power-of-two":
            return int(min(coins[place], key=lambda engine: outstanding[engine]))
        return int(np.argmin([expected[list(places)].sum() for places in unfinished]))

    return route
