"""Compile ahead of time what the first step would otherwise wait for (seconds, once a machine)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lengthwise.policy.discipline import Discipline
from lengthwise.policy.due import EngineState
from lengthwise.policy.facts import RUNNER, new_facts
from lengthwise.policy.step_order import StepOrder, begin, prepare
from lengthwise.policy.step_time import StepTime
from lengthwise.policy.tenants import new_shares, take_leads
from lengthwise.request import RUNNING, WAITING, new_table


def warm_up(discipline: Discipline) -> None:
    """Run everything that a step with this discipline may call, on a table of two requests."""
    # Whatever it may do: all of it is one function, the same for every discipline.
    own = discipline.parameters.copy()  # one may be set anew
    whole = replace(discipline, parameters=own, preemption="pays", memory_growth=1.0)
    table = new_table(2)
    table["state"] = (WAITING, RUNNING)
    table["prompt_tokens"] = 1
    table["expected"] = table["initial"] = table["remaining"] = 1.0
    facts, runners = new_facts(1, token_budget=8, block_size=16), np.zeros(1, RUNNER)
    runners["row"] = runners["age"] = 1
    prices, order = StepTime(), StepOrder()
    prices.observe(1, 1, 1e-3)
    prices.decode_s(1)
    state = EngineState(0.0, 0, 2, 1, 0, 1, 1, 1, 0, True, 0, 0)
    prepare(whole, facts, prices.times, state)
    begin(whole, facts, runners, table)
    take_leads(new_shares(1), table, 2)
    order.rank(discipline, table, facts)
    waiting = order.look(whole, facts, runners, table)
    order.decide(whole, facts, runners, table, waiting, np.ones(len(waiting), np.bool_))
    order.first(discipline, table, 2, 2)
