"""The request's priority is the outermost key of every order, whichever policy is inside.

Under `--scheduling-policy priority` the parent would take its victims itself, and puts a preempted
request back by arrival. Ours runs the parent as fcfs and orders the queue and the victims. With
memory to spare the two agree step for step. With scarce memory they cannot: where the worst
running request is the one being scheduled, stock preempts it and schedules nothing that comes
behind it in this step. What matters is tested instead: who is admitted, and who makes way.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from checked_engine import CheckedEngine
from engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.vllm import Scheduler
from random_traffic import RandomTraffic

CLASSES = 3


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("lag", [0, 1])
def test_stock_priority_step_for_step_with_memory_to_spare(lag: int, policy: str) -> None:
    stock, ours = (
        SteppedEngine(
            build_scheduler(
                scheduler_class,
                num_blocks=2_000,
                max_num_seqs=6,
                token_budget=64,
                asynchronous=bool(lag),
                policy="priority",
                lengthwise={"settings": {"policy": policy}},
            ),
            lag,
        )
        for scheduler_class in (None, Scheduler)
    )
    traffic = RandomTraffic(seed=11, classes=CLASSES)
    for _ in range(1_500):
        traffic.act([stock, ours])
        expected = stock.step()
        assert ours.step() == expected
    traffic.settle([stock, ours])
    assert ours.run() == stock.run()


@pytest.mark.parametrize("vllm_policy", ["fcfs", "priority"])
@pytest.mark.parametrize("policy", ["fcfs", "priority", "ltr", "srpt"])
@pytest.mark.parametrize("lag", [0, 1])
def test_no_one_of_a_later_class_goes_first(lag: int, policy: str, vllm_policy: str) -> None:
    scheduler = build_scheduler(
        Scheduler,
        num_blocks=36,
        max_num_seqs=6,
        token_budget=64,
        asynchronous=bool(lag),
        policy=vllm_policy,  # type: ignore[arg-type]
        lengthwise={
            "settings": {
                "policy": policy,
                "predictor": "oracle",
                "preemption": "greedy",
                "max_overtakes": 5,
            }
        },
    )
    engine = CheckedEngine(scheduler, lag, max_overtakes=5)
    traffic = RandomTraffic(seed=4, classes=CLASSES, disturbances=False)
    memory_victims = 0
    for _ in range(700):
        traffic.act([engine])
        classes = {i: request.priority for i, request in engine.requests.items()}
        waiting = set(engine._ready())
        running = {request.request_id for request in scheduler.running}
        known = len(engine.preemptions)
        step = engine.step()

        passed_over = waiting.difference(step.admitted, engine.finished)
        admitted = waiting.intersection(step.admitted)
        if admitted and passed_over:
            assert max(classes[i] for i in admitted) <= min(classes[i] for i in passed_over)
        preempted = {p.request_id: p.reason for p in engine.preemptions[known:]}
        kept = running.difference(preempted)
        for victim, reason in preempted.items():
            better = admitted if reason == "newcomer" else kept
            assert all(classes[victim] >= classes[other] for other in better), reason
            memory_victims += reason == "memory"
    assert memory_victims > 0
    engine.drain()


def test_a_better_class_preempts_only_where_the_policy_preempts() -> None:
    for preemption, expected in (("greedy", ["first"]), ("never", [])):
        settings = {"policy": "sjf", "predictor": "oracle", "preemption": preemption}
        scheduler = build_scheduler(
            Scheduler, max_num_seqs=1, policy="priority", lengthwise={"settings": settings}
        )
        engine = CheckedEngine(scheduler)
        engine.add(Ask("first", [5] * 4, 9, priority=1, hints={"lengthwise_true_tokens": 9}))
        engine.step()
        engine.step()
        engine.add(Ask("urgent", [6] * 4, 90, priority=0, hints={"lengthwise_true_tokens": 90}))
        for _ in range(6):  # swaps are looked for every eighth step
            engine.step()
        assert [preemption.request_id for preemption in engine.preemptions] == expected
        engine.drain()


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_worst_class_makes_room_whatever_the_number_of_kv_groups(groups: int) -> None:
    """Six of as many classes, the worst first in the batch, need a block of every group at once."""

    def first_evicted(scheduler_class: Any, spare: int) -> list[str]:
        scheduler = build_scheduler(
            scheduler_class,
            num_blocks=1 + 12 * groups + spare,
            policy="priority",
            prefix_caching=False,
            kv_groups=groups,
            lengthwise={"settings": {"policy": "fcfs"}},
        )
        engine = SteppedEngine(scheduler)
        for place in range(6):
            prompt = [7 + place] * (26 + place)
            engine.add(Ask(f"{place}", prompt, 40, priority=6 - place, arrival_time=float(place)))
            engine.step()
        evicted = [sorted(engine.step().preempted) for _ in range(3)]
        return next((names for names in evicted if names), [])

    seen = 0
    for spare in range(0, 6 * groups, 2):
        ours = first_evicted(Scheduler, spare)
        assert ours == [str(place) for place in range(len(ours))]
        assert bool(ours) == bool(first_evicted(None, spare))
        seen += bool(ours)
    assert seen
