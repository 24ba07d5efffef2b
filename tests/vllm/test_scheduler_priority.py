"""The request's priority is the outermost key of every order, whichever policy is inside.

Under `--scheduling-policy priority` the policies fcfs and priority are stock vLLM step for step:
who is admitted, equal classes by arrival time, and who makes way. Other policies order the queue
and the victims themselves. Where the worst running request is the one being scheduled, stock
preempts it and schedules nothing that comes behind it in this step; what matters is tested there:
who is admitted, and who makes way.
"""

from __future__ import annotations

import itertools
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.settings import Settings, parse_settings
from lengthwise.vllm import Scheduler
from tests.support.checked_engine import CheckedEngine
from tests.support.random_traffic import RandomTraffic
from tests.support.stock_and_ours import stock_and_ours

CLASSES = 3


class LateTraffic(RandomTraffic):
    """Requests that reach the engine in another order than they arrived, some at the same time."""

    def ask(self) -> Ask:
        ask = super().ask()
        return replace(ask, arrival_time=ask.arrival_time // 2 + self._rng.randrange(-4, 5))


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("num_blocks", [2_000, 36])
@pytest.mark.parametrize("lag", [0, 1])
def test_stock_priority_step_for_step(lag: int, num_blocks: int, policy: str) -> None:
    limits = {"num_blocks": num_blocks, "max_num_seqs": 6, "token_budget": 64}
    stock, ours = stock_and_ours({"policy": policy}, lag, policy="priority", **limits)
    traffic = LateTraffic(seed=11, classes=CLASSES)
    preempted = 0
    for _ in range(1_000):
        traffic.act([stock, ours])
        expected = stock.step()
        preempted += len(expected.preempted)
        assert ours.step() == expected
        assert ids(ours.scheduler.waiting) == ids(stock.scheduler.waiting)
        assert ids(ours.scheduler.running) == ids(stock.scheduler.running)
    if num_blocks == 36:
        assert preempted > 20
    traffic.settle([stock, ours])
    assert ours.run() == stock.run()
    assert ours.scheduler.waiting._arrival_order._keys == []


def ids(requests: Any) -> list[str]:
    return [request.request_id for request in requests]


@pytest.mark.parametrize("vllm_policy", ["fcfs", "priority"])
def test_the_queue_can_be_looked_at_between_steps(vllm_policy: str) -> None:
    rng = random.Random(5)
    stock, ours = stock_and_ours({"policy": "fcfs"}, max_num_seqs=1, policy=vllm_policy)
    for number in range(20):
        ask = Ask(f"r{number}", [7] * 9, 3, priority=rng.randrange(3), arrival_time=rng.random())
        for engine in (stock, ours):
            engine.add(ask)
    queue = ours.scheduler.waiting
    assert ids(queue) == ids(stock.scheduler.waiting)
    assert queue[0] is queue.peek_request() is next(iter(queue))
    assert queue[-1] is list(queue)[-1]
    with pytest.raises(IndexError):
        queue[20]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_worst_class_makes_room_whatever_the_number_of_kv_groups(
    groups: int, policy: str
) -> None:
    """Hybrid models need a block in each group of layers: nobody knows beforehand that memory is
    short. Six of as many classes, the worst first in the batch, need a new block at once."""

    def first_evicted(scheduler_class: Any, spare: int) -> list[str]:
        scheduler = build_scheduler(
            scheduler_class,
            num_blocks=1 + 12 * groups + spare,
            policy="priority",
            prefix_caching=False,
            kv_groups=groups,
            lengthwise={"settings": {"policy": policy}},
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
        assert ours == first_evicted(None, spare)
        assert ours == [str(place) for place in range(len(ours))]
        seen += bool(ours)
    assert seen


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
                "client_priority": True,
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


@pytest.mark.parametrize("policy", ["fcfs", "ltr", "sjf", "mlfq"])
@pytest.mark.parametrize("lag", [0, 1])
def test_clients_cannot_go_first_where_vllm_would_not_let_them(policy: str, lag: int) -> None:
    steps = []
    for classes in (1, CLASSES):
        scheduler = build_scheduler(
            Scheduler,
            num_blocks=36,
            max_num_seqs=6,
            token_budget=64,
            asynchronous=bool(lag),
            lengthwise={"settings": {"policy": policy, "predictor": "oracle"}},
        )
        # Who gives up memory depends on what steps cost.
        scheduler.begin_anew(map(float, itertools.count()).__next__)
        engine = SteppedEngine(scheduler, lag)
        traffic = RandomTraffic(seed=4, classes=CLASSES, disturbances=False)
        seen = []
        for _ in range(400):
            traffic.act([_Classless(engine) if classes == 1 else engine])
            seen.append(engine.step())
        steps.append(seen)
    assert steps[0] == steps[1]


def test_settings_say_whether_the_priorities_of_clients_count() -> None:
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=1, lengthwise={"settings": {"policy": "fcfs"}}
    )
    engine = SteppedEngine(scheduler)
    engine.add(Ask("running", [7] * 4, 3))
    engine.step()
    engine.add(Ask("first", [7] * 4, 3))
    engine.add(Ask("urgent", [7] * 4, 3, priority=-5))
    scheduler.apply_now(Settings(policy="fcfs", client_priority=True))
    engine.run()
    assert list(engine.finished) == ["running", "urgent", "first"]


class _Classless:
    """An engine whose clients send no priority."""

    def __init__(self, engine: SteppedEngine) -> None:
        self._engine = engine

    def add(self, ask: Ask) -> None:
        self._engine.add(replace(ask, priority=0))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_stream_of_a_better_class_leaves_the_others_their_order_and_their_bound(
    data: st.DataObject,
) -> None:
    """An adversary sends requests of a better class whenever it likes: it can take slots from the
    others, but neither makes them go in order of arrival nor lets them overtake more often."""
    guards = {
        "max_overtakes": data.draw(st.integers(2, 6), label="max_overtakes"),
        "overtake_share": data.draw(st.sampled_from([0.0, 0.5]), label="overtake_share"),
    }
    scheduler = build_scheduler(
        Scheduler,
        max_num_seqs=data.draw(st.integers(1, 3), label="slots"),
        policy="priority",
        lengthwise={"settings": {"policy": "sjf", "predictor": "oracle", **guards}},
    )
    engine = CheckedEngine(scheduler, **guards)
    names = itertools.count()

    def send(priority: int) -> None:
        answer = data.draw(st.integers(1, 40), label="tokens")
        name, hints = f"r{next(names)}", {"lengthwise_true_tokens": answer}
        engine.add(Ask(name, [7] * 8, answer, priority=priority, hints=hints))

    for _ in range(40):
        if data.draw(st.booleans(), label="theirs"):
            send(0)
        if data.draw(st.booleans(), label="ours"):
            send(1)
        engine.step()
    engine.drain()


@pytest.mark.parametrize("theirs", [-1, 1])
def test_a_flood_of_another_class_loosens_nobodys_bound(theirs: int) -> None:
    """How many of another class wait when a request comes says nothing of its own queue."""
    guards = {"max_overtakes": 3, "overtake_share": 0.5}
    scheduler = build_scheduler(
        Scheduler,
        max_num_seqs=1,
        policy="priority",
        lengthwise={"settings": {"policy": "sjf", "predictor": "oracle", **guards}},
    )
    engine = CheckedEngine(scheduler, **guards)

    def send(name: str, answer: int, priority: int) -> None:
        hints = {"lengthwise_true_tokens": answer}
        engine.add(Ask(name, [7] * 8, answer, priority=priority, hints=hints))

    for number in range(30):
        send(f"theirs-{number}", 3, theirs)
    engine.step()
    send("long", 50, 0)
    for number in range(20):
        send(f"short-{number}", 2, 0)
    engine.drain()
    own = [name for name in engine.finished if not name.startswith("theirs")]
    assert own.index("long") == 3


@pytest.mark.parametrize("vllm_policy", ["fcfs", "priority"])
def test_how_many_of_a_class_wait_is_known_at_any_time(vllm_policy: Any) -> None:
    """Whoever leaves, is preempted, ends in the queue or is of another class from now on."""
    values = {"policy": "srpt", "predictor": "declared", "preemption": "greedy"}
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=3, num_blocks=9, policy=vllm_policy, asynchronous=True,
        lengthwise={"settings": values},
    )  # fmt: skip
    engine = CheckedEngine(scheduler, lag=1)
    for number in range(80):
        said = {"lengthwise_expected_tokens": 3 + number * 7 % 50}
        ask = Ask(f"r{number}", [number + 2] * 20, 3 + number * 11 % 50, priority=number % 3)
        engine.add(replace(ask, hints=said))
        if number % 9 == 0:
            engine.abort([f"r{number - 3}"])
        if number % 20 == 10:
            scheduler.apply_now(parse_settings({**values, "client_priority": number % 40 == 10}))
        engine.step()
        of_class = Counter(engine._class_of(engine.asked[r.request_id]) for r in scheduler.waiting)
        assert {c: scheduler.waiting.of_class(c) for c in range(3)} == {
            c: of_class[c] for c in range(3)
        }
    engine.drain()
    assert scheduler.counters.preemptions > 0 < scheduler.counters.memory_preemptions
    assert not scheduler.waiting._of_class


def test_who_is_overtaken_by_a_better_class_alone_is_served_in_order_of_length() -> None:
    scheduler = build_scheduler(
        Scheduler,
        max_num_seqs=1,
        policy="priority",
        lengthwise={"settings": {"policy": "sjf", "predictor": "oracle", "max_overtakes": 6}},
    )
    engine = SteppedEngine(scheduler)
    for name, answer, priority in [
        ("runs", 5, 1),
        *((f"low{tokens}", tokens, 1) for tokens in (50, 40, 30, 20, 10)),
        *((f"high{number}", 4, 0) for number in range(12)),
    ]:
        hints = {"lengthwise_true_tokens": answer}
        engine.add(Ask(name, [7] * 8, answer, priority=priority, hints=hints))
        if name == "runs":
            engine.step()
    engine.run()
    low = [name for name in engine.finished if name.startswith("low")]
    assert low == ["low10", "low20", "low30", "low40", "low50"]
