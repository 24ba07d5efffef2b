"""Newcomers that take the memory of running requests, a step at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.facts import RUNNER, new_facts, swaps_are_due
from lengthwise.policy.prepass import StepOrder, decide_one
from lengthwise.request import PAUSED, RUNNING, WAITING, new_table


class Step:
    """An engine of blocks of one token, whose running requests all have copies in host memory.

    Args:
        running: predicted remaining tokens and computed ones of each.
        waiting: predicted tokens and prompt tokens of each, in order of arrival.
        free_blocks: what nobody holds.
        rules: of `make_discipline`, beside those of a pausing srpt.
    """

    def __init__(
        self,
        running: list[tuple[int, int]],
        waiting: list[tuple[int, int]],
        free_blocks: int,
        **rules: Any,
    ) -> None:
        count = len(running) + len(waiting)
        self.table = table = new_table(count)
        table["state"] = [RUNNING] * len(running) + [WAITING] * len(waiting)
        table["sequence"] = table["arrival_index"] = np.arange(count)
        table["expected"] = table["remaining"] = [each[0] for each in running + waiting]
        for column, share in (("low", 0.5), ("median", 0.9), ("high", 2.0)):
            table[column] = table["expected"] * share
        table["age"][: len(running)] = 1
        table["prompt_tokens"] = [each[1] for each in running + waiting]
        table["computed_tokens"][: len(running)] = [each[1] for each in running]
        self.runners = np.zeros(len(running), RUNNER)
        self.runners["row"], self.runners["age"] = np.arange(len(running)), 1
        self.runners["computed_tokens"] = table["computed_tokens"][: len(running)]
        self.runners["freed_blocks"] = self.runners["computed_tokens"]
        self.runners["wanted_tokens"], self.runners["may_make_way"] = 1, True
        limits = {"host_blocks": 1000, "offloads_answers": True, "max_adapters": 2}
        self.facts = new_facts(1, token_budget=500, block_size=1, **limits)
        state = {"rows": count, "step": 8, "running": len(running), "waiting": len(waiting)}
        state |= {"free_blocks": free_blocks, "may_swap": True, "free_places": 4}
        prices = {"step_s": 0.01, "prefill_s": 1e-5, "tokens_per_step": 4.0}
        for name, value in {**state, **prices}.items():
            self.facts[name] = value
        self.rules = rules

    def decide(self) -> tuple[list[int], list[int], list[int], list[int]]:
        """Victims, waiting rows that come in, who runs, who is paused."""
        given = {"preemption": "pays", "pausing": True, **self.rules}
        discipline, order = make_discipline("srpt", **given), StepOrder()
        order.rank(discipline, self.table, self.facts)
        rows = order.first(discipline, self.table, len(self.table), len(self.table))
        ready = np.ones(len(rows), np.bool_)
        ranked = order.of(self.table)
        victims, front, _, kept, paused = decide_one(
            discipline.rules, self.facts, self.runners, ranked, rows, ready
        )
        return victims.tolist(), front.tolist(), kept.tolist(), paused.tolist()


def test_a_newcomer_takes_the_memory_of_the_longest_where_no_pause_finds_any() -> None:
    step = Step([(300, 40), (900, 40)], [(5, 20)], free_blocks=2)
    assert step.decide() == ([1], [2], [0], [])
    assert step.table["state"][1] == RUNNING, "it makes way for a newcomer"
    assert Step([(300, 40), (900, 40)], [(5, 20)], free_blocks=60).decide() == ([], [2], [0], [1])


def test_a_victim_in_flight_is_paused_and_preempted_in_the_next_step() -> None:
    step = Step([(300, 40), (900, 40)], [(5, 20)], free_blocks=2)
    step.runners["in_flight"] = True
    assert step.decide() == ([], [], [0], [1])
    assert step.facts["leaving"][0] == 1
    assert step.table["state"][1] == PAUSED
    # Now it is not in flight; the other is, and of equal ones it would be chosen.
    step.table["expected"][:2] = step.table["remaining"][:2] = 900
    step.runners["paused"][1], step.runners["in_flight"][1] = True, False
    step.facts["step"], step.facts["running"], step.facts["paused"] = 9, 1, 1
    step.facts["free_slots"] = 1
    assert step.decide() == ([1], [2], [0], [])
    assert step.facts["leaving"][0] == 0


@pytest.mark.parametrize("preemption", ["pays", "greedy"])
def test_nobody_makes_way_for_a_victim_of_the_same_step(preemption: str) -> None:
    """The first newcomer fits into the place of the first alone; the second takes the longest."""
    running, waiting = [(100, 11), (300, 8), (200, 8)], [(1, 9), (2, 1)]
    step = Step(running, waiting, free_blocks=3, preemption=preemption)
    victims, front, _, paused = step.decide()
    assert sorted(front) == [3, 4]
    assert len(victims) + len(paused) == 2
    step = Step(running, [*waiting, (150, 30)], free_blocks=3, preemption=preemption)
    assert len(step.decide()[1]) == 2, "the third does not come in before a victim that it follows"


def test_nobody_passes_one_whose_adapter_fits() -> None:
    """Although it gets in only if a certain request makes way: it would be overtaken for good."""
    step = Step([(300, 24), (300, 24)], [(5, 9), (6, 9)], free_blocks=2)
    step.table["adapter"] = [1, 0, 2, 0]
    assert step.decide()[:2] == ([], [])
    step.table["adapter"] = [1, 2, 3, 0]  # no adapter leaves: this one has to wait
    assert step.decide()[1] == [3]


def test_no_more_swaps_than_a_step_may_make() -> None:
    running, waiting = [(300, 40), (900, 40), (800, 40)], [(5, 20), (6, 20), (7, 20)]
    for most in (1, 2):
        step = Step(running, waiting, free_blocks=30, max_swaps=most)
        victims, _, _, paused = step.decide()
        assert len(victims) + len(paused) == most


def test_without_a_price_nobody_loses_an_answer_that_has_no_copy() -> None:
    running, waiting = [(300, 40), (900, 40)], [(5, 20)]
    step = Step(running, waiting, free_blocks=2, preemption="greedy")
    step.facts["offloads_answers"] = False
    assert step.decide()[:2] == ([], [])


def test_who_was_paused_for_this_is_looked_at_by_a_discipline_that_pauses_alone() -> None:
    step = Step([(300, 40)], [(5, 20)], free_blocks=2)
    step.facts["step"], step.facts["leaving"] = 9, 1
    pausing, not_pausing = (
        make_discipline("srpt", preemption="pays", pausing=each).rules for each in (True, False)
    )
    assert swaps_are_due(pausing[0], step.facts[0])
    assert not swaps_are_due(not_pausing[0], step.facts[0])
