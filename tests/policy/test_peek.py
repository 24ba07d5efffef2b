"""Looks at waiting requests against a plain reading of them."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.compiled import compiled
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.facts import RUNNER, new_facts
from lengthwise.policy.order import Order
from lengthwise.policy.peek import choose_peeks, end_looks, settle_looks
from lengthwise.policy.prepass import StepOrder
from lengthwise.request import BY_PROBE, LENT, LOOKED, LOOKING, PAUSED, RUNNING, WAITING, new_table
from tests.support.plain_peek import PlainLooks, settled


@compiled
def ended(facts: Any, runners: Any, order: Order) -> Any:
    return end_looks(facts[0], runners, order)


@compiled
def written(facts: Any, runners: Any, active: Any, order: Order, kept: Any, paused: Any) -> None:
    settle_looks(facts[0], runners, active, order, kept, paused)


@compiled
def looked_at(
    rules: Any,
    facts: Any,
    runners: Any,
    order: Order,
    waiting: Any,
    kept: Any,
    paused: Any,
    front: Any,
) -> Any:
    return choose_peeks(rules[0], facts[0], runners, order, waiting, kept, paused, front)


def compare(seed: int) -> Counter[str]:
    """Decide in both ways; what was decided."""
    generator = np.random.default_rng(seed)
    running, paused, waiting = counts = [int(generator.integers(0, 8)) for _ in range(3)]
    n = sum(counts)
    table = new_table(max(n, 1))
    table["state"][:n] = [*running * [RUNNING], *paused * [PAUSED], *waiting * [WAITING]]
    table["sequence"] = generator.permutation(len(table))
    table["prompt_tokens"] = generator.integers(1, 40, len(table))
    runs, rests = table["state"] == RUNNING, table["state"] == PAUSED
    table["look"] += runs * generator.choice([0, 0, LOOKING], len(table))
    table["look"] += rests * generator.choice([0, LOOKED, LENT], len(table))
    table["age"] = generator.choice([0, 1, 20], len(table)) * (
        (table["state"] != WAITING) | (generator.random(len(table)) < 0.1)
    )
    table["predicted"] = generator.choice([0, 1, 1, BY_PROBE], len(table))
    table["expected"] = table["remaining"] = generator.choice([5.0, 20.0, 90.0], len(table))
    table["low"], table["median"], table["high"] = (
        table["expected"] * share for share in (0.5, 0.9, 2.0)
    )
    table["initial"] = table["expected"]
    # Those that run are within the limit.
    table["adapter"] = generator.choice([0, 0, 1], len(table))
    table["adapter"] += (table["state"] == WAITING) * generator.integers(0, 2, len(table))
    discipline = make_discipline("trail", pausing=True, peek=True, max_swaps=3)
    runners = np.zeros(running + paused, RUNNER)
    runners["row"] = np.arange(running + paused)
    runners["age"] = table["age"][: len(runners)]
    runners["paused"] = np.arange(len(runners)) >= running
    runners["computed_tokens"] = table["prompt_tokens"][: len(runners)] + runners["age"]
    runners["wanted_tokens"] = generator.choice([1, 1, 9], len(runners))
    runners["may_make_way"] = generator.random(len(runners)) < 0.8
    facts = new_facts(
        1,
        token_budget=int(generator.integers(8, 200)),
        block_size=8,
        watermark_blocks=int(generator.integers(0, 3)),
    )
    facts["max_adapters"] = generator.choice([0, 1, 2])
    facts["rows"] = n
    facts["running"], facts["paused"], facts["waiting"] = counts
    facts["free_slots"], facts["free_places"] = generator.integers(0, 3), generator.integers(4, 40)
    facts["free_blocks"] = generator.choice([6, 40, 400, 4000])
    facts["token_work"] = generator.choice([0.0, 0.1, 1.0])
    ordered = StepOrder()
    facts["step"] = 8
    ordered.rank(discipline, table, facts)
    rows = ordered.first(discipline, table, n, n)
    plain = PlainLooks(
        discipline.rules.view(np.recarray)[0],
        facts.copy().view(np.recarray)[0],
        runners.copy().view(np.recarray),
        table.copy().view(np.recarray),
        ordered.groups,
        ordered.ranks,
    )

    order = ordered.of(table)
    active = ended(facts, runners, order)
    over, back = plain.ended(), plain.return_slots()
    assert np.nonzero(active["paused"] & ~runners["paused"])[0].tolist() == over
    assert np.nonzero(~active["paused"] & runners["paused"])[0].tolist() == back
    assert facts["running"][0] == running + len(back) - len(over)
    assert facts["free_slots"][0] == plain.facts.free_slots + len(over) - len(back)

    # Any choice among them.
    keep = (~active["paused"]) & (generator.random(len(active)) < 0.9)
    keep |= active["paused"] & (generator.random(len(active)) < 0.2)
    kept, rest = np.nonzero(keep)[0], np.nonzero(~keep)[0]
    front = rows[table["adapter"][rows] < 2][: int(generator.integers(0, 3))]
    before = table["look"].copy()
    written(facts, runners, active, order, kept, rest)
    for place in range(len(runners)):
        ran = not runners["paused"][place]
        after = settled(before[place], ran, place in kept, ran and place in over, place in back)
        assert table["look"][place] == after
    plain.table = table.copy().view(np.recarray)
    run, lent, come = looked_at(
        discipline.rules,
        facts,
        runners,
        order,
        rows,
        kept,
        rest,
        front,
    )
    lenders, looks = plain.peek(rows.tolist(), kept.tolist(), front.tolist())
    assert run.tolist() == [place for place in kept if place not in lenders]
    assert lent.tolist() == rest.tolist() + lenders
    assert come.tolist() == front.tolist() + looks
    assert (table["look"][looks] == LOOKING).all()
    assert (table["look"][lenders] == LENT).all()
    assert (table["state"][lenders] == PAUSED).all()
    assert facts["looking"][0] == len(looks) + (table["look"][run] == LOOKING).sum()
    return Counter(over=len(over) > 0, back=len(back) > 0, looks=len(looks) > 0)


@settings(deadline=None, max_examples=500)
@given(st.integers(0, 2**32 - 1))
def test_looks_are_those_of_a_plain_reading(seed: int) -> None:
    compare(seed)


def test_the_random_steps_have_every_kind_of_look() -> None:
    seen = sum((compare(seed) for seed in range(200)), Counter())
    assert min(seen[name] for name in ("over", "back", "looks")) >= 10, seen
