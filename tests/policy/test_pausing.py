"""The choice among running, paused and waiting requests against a plain reading of it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.compiled import compiled
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.facts import RUNNER, new_facts
from lengthwise.policy.guards import OVERDUE, TIERS
from lengthwise.policy.order import Order
from lengthwise.policy.pausing import choose_active
from lengthwise.policy.prepass import StepOrder
from lengthwise.request import PAUSED, RUNNING, WAITING, new_table
from tests.support.plain_pausing import PlainChoice


@compiled
def choose(
    rules: Any,
    facts: Any,
    runners: Any,
    order: Order,
    waiting: Any,
    swaps: bool,
) -> Any:
    return choose_active(rules[0], facts[0], runners, order, waiting, swaps)


def compare(seed: int) -> Counter[str]:
    """Choose in both ways; what was chosen."""
    generator = np.random.default_rng(seed)
    counts = [int(generator.integers(low, 8)) for low in (0, 0, 0)]
    running, paused, waiting = counts
    n = sum(counts)
    table = new_table(max(n, 1))
    states = [*running * [RUNNING], *paused * [PAUSED], *waiting * [WAITING]]
    table["state"][:n] = states
    table["sequence"] = generator.permutation(len(table))
    table["arrival_index"] = generator.permutation(len(table))
    table["prompt_tokens"] = generator.integers(1, 40, len(table))
    table["age"] = np.where(table["state"] == WAITING, 0, generator.integers(1, 30, len(table)))
    # Ties, too.
    table["expected"] = table["remaining"] = generator.choice([5.0, 20.0, 21.0, 90.0], len(table))
    table["low"], table["median"], table["high"] = (
        table["expected"] * share for share in (0.5, 0.9, 2.0)
    )
    table["adapter"] = generator.choice([0, 0, 1, 2], len(table))
    table["preemptions"] = generator.integers(0, 3, len(table))
    table["computed_tokens"] = table["prompt_tokens"] + table["age"]
    table["paused_s"] = generator.choice([-20.0, -1.0], len(table))
    discipline = make_discipline(
        "srpt",
        preemption=str(generator.choice(["pays", "greedy"])),
        pausing=True,
        max_stall_s=float(generator.choice([10.0, 1e6])),
        max_swaps=int(generator.integers(1, 5)),
    )
    runners = np.zeros(running + paused, RUNNER)
    batch = generator.permutation(running).tolist()
    runners["row"] = [*batch, *range(running, running + paused)]
    runners["age"] = table["age"][runners["row"]]
    runners["paused"] = np.arange(len(runners)) >= running
    runners["computed_tokens"] = table["prompt_tokens"][runners["row"]] + runners["age"] - 1
    runners["wanted_tokens"] = generator.choice([1, 1, 1, 9], len(runners))
    runners["may_make_way"] = generator.random(len(runners)) < 0.8
    runners["freed_blocks"] = runners["computed_tokens"] // 8 + generator.integers(0, 2)
    runners["in_flight"] = ~runners["paused"] & (generator.random() < 0.5)
    facts = new_facts(
        1,
        token_budget=int(generator.integers(8, 200)),
        block_size=8,
        watermark_blocks=int(generator.integers(0, 3)),
        max_adapters=int(generator.choice([0, 1, 2])),
        host_blocks=int(generator.choice([0, 20, 1000])),
        offloads_answers=bool(generator.random() < 0.8),
    )
    facts["rows"], facts["step"] = n, 8
    facts["running"], facts["paused"], facts["waiting"] = counts
    facts["free_slots"], facts["free_places"] = generator.integers(0, 4), generator.integers(0, 6)
    facts["free_blocks"] = generator.choice([0, 2, 6, 40, 400])
    facts["token_work"] = generator.choice([0.0, 0.3])
    facts["step_s"], facts["prefill_s"], facts["tokens_per_step"] = 0.01, 1e-5, 4.0
    facts["leaving"] = generator.integers(0, 2)
    ordered = StepOrder()
    ordered.rank(discipline, table, facts)
    rows = ordered.first(discipline, table, n, n)
    swaps = bool(generator.random() < 0.8)
    reading = PlainChoice(
        discipline.rules.view(np.recarray)[0],
        facts.view(np.recarray)[0],
        runners.copy().view(np.recarray),
        table.copy().view(np.recarray),
        ordered.groups,
        ordered.ranks,
    )
    plain = reading.choose(rows.tolist(), swaps)
    order = ordered.of(table)
    chosen = choose(discipline.rules, facts, runners, order, rows, swaps)
    assert tuple(each.tolist() for each in chosen) == plain
    assert facts["leaving"][0] == reading.leaving
    freed, runs, rests, front = plain
    assert sorted(freed + runs + rests) == list(range(len(runners)))
    assert all(table["state"][runners["row"][place]] == RUNNING for place in runs)
    assert all(table["state"][runners["row"][place]] == PAUSED for place in rests)
    return Counter(
        freed=len(freed) > 0,
        back=any(place >= running for place in runs),
        gone=any(place < running for place in rests),
        front=len(front) > 0,
        preempted=bool((table["state"][runners["row"][freed]] == RUNNING).any()),
        leaving=reading.leaving > 0,
        overdue=bool((ordered.groups[:n] % TIERS == OVERDUE).any()),
    )


@settings(deadline=None, max_examples=500)
@given(st.integers(0, 2**32 - 1))
def test_the_choice_is_that_of_a_plain_reading(seed: int) -> None:
    compare(seed)


def test_the_random_steps_have_every_kind_of_choice() -> None:
    seen = sum((compare(seed) for seed in range(700)), Counter())
    kinds = ("freed", "back", "gone", "front", "overdue", "preempted", "leaving")
    assert min(seen[name] for name in kinds) >= 10, seen
