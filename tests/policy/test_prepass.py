"""The pre-pass against a plain reading of it, and again from a recorded step."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.policy.discipline import make_discipline
from lengthwise.policy.facts import RUNNER, new_facts
from lengthwise.policy.prepass import StepOrder, decide_one, look_one
from lengthwise.policy.replay import RecordedStep, load_step
from lengthwise.request import RUNNING, WAITING, RequestTable, new_table
from tests.support.plain_prepass import PlainPrepass


def random_table(generator: np.random.Generator, running: int, waiting: int) -> RequestTable:
    """Waiting and running requests in random rows; few values, so that there are ties."""
    n = running + waiting
    table = new_table(n)
    table["state"] = generator.permutation([RUNNING] * running + [WAITING] * waiting)
    table["sequence"] = generator.permutation(n)
    table["arrival_index"] = np.arange(n)
    table["priority"] = generator.integers(0, generator.integers(1, 3), n)
    table["prompt_tokens"] = generator.integers(1, 60, n)
    table["expected"] = generator.choice([5.0, 20.0, 80.0, 300.0], n)
    spread = generator.choice([1.0, 2.0], n)
    table["initial"] = table["median"] = table["remaining"] = table["expected"]
    table["low"], table["high"] = table["expected"] / spread, table["expected"] * spread
    table["predicted"] = generator.random(n) < generator.choice([0.0, 0.2, 1.0])
    table["preemptions"] = generator.integers(0, 3, n)
    table["memory_preemptions"] = generator.integers(3, 7, n)
    table["cached_tokens"] = generator.integers(0, 2, n) * table["prompt_tokens"] // 2
    return table


def random_runners(generator: np.random.Generator, table: RequestTable) -> Any:
    runners = np.zeros(int((table["state"] == RUNNING).sum()), RUNNER)
    n = len(runners)
    runners["row"] = generator.permutation(np.flatnonzero(table["state"] == RUNNING))
    runners["age"] = generator.integers(0, 30, n)
    runners["computed_tokens"] = table["prompt_tokens"][runners["row"]] + runners["age"]
    runners["wanted_tokens"] = generator.choice([1, 1, 1, 9], n)
    runners["prefilling"] = runners["wanted_tokens"] > 1
    runners["may_make_way"] = ~runners["prefilling"] & (generator.random(n) < 0.9)
    runners["freed_blocks"] = runners["computed_tokens"] // 8
    return runners


def compare(seed: int) -> Counter[str]:
    """Decide one random step in both ways; what was decided."""
    generator = np.random.default_rng(seed)
    discipline = make_discipline(
        str(generator.choice(["sjf", "srpt", "hrrn", "trail"])),
        preemption=generator.choice(["never", "pays", "greedy"]),
        blend=float(generator.choice([1.0, 1.0, 0.6])),
        memory_growth=float(generator.choice([0.0, 1.0])),
        max_swaps=int(generator.integers(1, 5)),
        max_overtakes=generator.choice([None, 3]),
    )
    table = random_table(generator, int(generator.integers(0, 8)), int(generator.integers(0, 20)))
    runners = random_runners(generator, table)
    facts = new_facts(
        1,
        token_budget=int(generator.integers(8, 200)),
        block_size=8,
        watermark_blocks=int(generator.integers(0, 3)),
        lookahead_tokens=int(generator.choice([0, 0, 5])),
        caching=bool(generator.integers(2)),
    )
    facts["step"] = generator.choice([8, 8, 9])
    facts["rows"] = len(table)
    facts["running"], facts["waiting"] = len(runners), len(table) - len(runners)
    facts["free_slots"] = generator.integers(0, 4)
    facts["free_blocks"] = generator.choice([3, 20, 60, 400])
    facts["may_swap"] = generator.random() < 0.9
    facts["admissions"] = generator.integers(0, 50)
    facts["step_s"], facts["prefill_s"] = 0.01, float(generator.choice([1e-5, 1e-3]))
    facts["tokens_per_step"] = 16.0

    table["age"][runners["row"]] = runners["age"]
    table["computed_tokens"][runners["row"]] = runners["computed_tokens"]
    order = StepOrder()
    order.rank(discipline, table, facts)
    blocked = set(np.flatnonzero(generator.random(len(table)) < 0.2).tolist())
    plain = PlainPrepass(
        discipline.rules.view(np.recarray)[0],
        facts.view(np.recarray)[0],
        runners.copy().view(np.recarray),
        table.view(np.recarray),
        order.groups,
        order.ranks,
        blocked,
    ).decide()

    says = runners["may_make_way"].copy()
    rules, ranked = discipline.rules, order.of(table)
    waiting = look_one(rules, facts, runners, ranked)
    runners["may_make_way"] &= says
    ready = np.array([row not in blocked for row in waiting], np.bool_)
    victims, front, limited, kept, paused = decide_one(
        rules, facts, runners, ranked, waiting, ready
    )
    assert len(paused) == 0
    assert (victims.tolist(), front.tolist() if limited else None, kept.tolist()) == plain
    swapped, moved = len(victims) > 0, bool((np.diff(kept) < 0).any())
    return Counter(swapped=swapped, limited=limited and not swapped, sorted=moved)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1))
def test_the_decision_is_that_of_a_plain_reading(seed: int) -> None:
    compare(seed)


def test_the_random_steps_have_every_kind_of_decision() -> None:
    seen = sum((compare(seed) for seed in range(100)), Counter())
    assert min(seen["swapped"], seen["limited"], seen["sorted"]) >= 3, seen


def recorded_steps(policy: str) -> list[tuple[RecordedStep, Any]]:
    """Decisions of a scheduler in some hundred steps of random traffic."""
    pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")
    from bench.support.engine_harness import SteppedEngine, build_scheduler
    from lengthwise.vllm import Scheduler
    from tests.support.random_traffic import RandomTraffic

    scheduler = build_scheduler(
        Scheduler,
        num_blocks=60,
        max_num_seqs=4,
        lengthwise={
            "settings": {
                "policy": policy,
                "predictor": "oracle",
                "preemption": "greedy",
                "memory_growth": 1.0,
                "service_time": True,
            }
        },
    )
    recorded: list[tuple[RecordedStep, Any]] = []
    scheduler._planner.on_decision = lambda step, decision: recorded.append((step, decision))
    engine, traffic = SteppedEngine(scheduler), RandomTraffic(seed=3)
    for _ in range(300):
        traffic.act([engine])
        engine.step()
    return recorded


@pytest.mark.parametrize("policy", ["srpt", "mlfq"])
def test_a_recorded_step_is_decided_the_same_anywhere(policy: str, tmp_path: Path) -> None:
    recorded = recorded_steps(policy)
    assert sum(len(decision.victims) > 0 for _, decision in recorded) > 3
    for step, decision in recorded:
        step.save(tmp_path / "step.npz")
        again = load_step(tmp_path / "step.npz").decide()
        for now, then in zip(again, decision, strict=True):
            assert np.array_equal(now, then)


def test_what_is_no_recorded_step_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "step.npz"
    for content in (b"", b"nonsense", b"PK\x03\x04"):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is no recorded step"):
            load_step(path)
    np.savez(path, policy=np.array("srpt"))
    with pytest.raises(InputError, match="is no recorded step"):
        load_step(path)
