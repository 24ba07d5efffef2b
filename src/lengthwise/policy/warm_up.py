"""Compile ahead of time what the first step would otherwise wait for (seconds, once a machine)."""

from __future__ import annotations

import numpy as np

from lengthwise.policy.discipline import Discipline
from lengthwise.policy.memory import fitting
from lengthwise.policy.order import victims_last
from lengthwise.policy.select import Engine, StepOrder, choose_swaps, outranked_by_any
from lengthwise.request import RUNNING, WAITING, new_table


def warm_up(discipline: Discipline) -> None:
    """Run everything that a step with this discipline may call, on a table of two requests."""
    table = new_table(2)
    table["state"] = (WAITING, RUNNING)
    table["prompt_tokens"] = 1
    table["age"] = (0, 1)
    # The running request would rank last and has far to go: the costly path is taken.
    for name in ("expected", "initial", "remaining", "score"):
        table[name] = (1.0, 1000.0)
    order = StepOrder()
    order.rank(discipline, table, 2, 0.0, 0)
    waiting = order.first(discipline, table, 2, 2)
    order.after(table, 2, 0, 2)
    running = np.ones(1, np.int64)
    victims_last(table, order.groups, order.ranks, running, np.zeros(1, np.bool_))
    if discipline.preempts:
        outranked_by_any(order.groups, order.ranks, running, waiting)
        choose_swaps(
            discipline.preemption == "greedy",
            discipline.max_swaps,
            order.groups,
            order.ranks,
            table,
            waiting,
            running,
            np.ones(1, np.bool_),
            np.ones(1, np.int64),
            Engine(0, 1, 8, 16, True, 2, 1e-2, 1e-5, 1.0),
        )
    if discipline.memory_growth > 0.0:
        fitting(table, running, waiting, discipline.memory_growth, 1, 16)
