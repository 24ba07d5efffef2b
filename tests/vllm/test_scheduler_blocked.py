"""Requests that wait for something other than a slot: a grammar, an adapter, their next input."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.vllm import Scheduler
from lengthwise.vllm.compat.schedulers import Room
from tests.support.checked_engine import AnyText, CheckedEngine
from tests.support.stock_and_ours import stock_and_ours

SRPT = {"policy": "srpt", "predictor": "oracle", "preemption": "greedy"}


def _ask(name: str, answer: int, prompt: list[int] | None = None, **options: Any) -> Ask:
    hints = {"lengthwise_true_tokens": answer}
    return Ask(name, prompt or [100 + len(name)] * 20, answer, hints=hints, **options)


@pytest.mark.parametrize("blend", [1.0, 0.5])
@pytest.mark.parametrize("lag", [0, 1])
def test_many_that_wait_for_their_grammar_do_not_hold_up_one_that_is_ready(
    lag: int, blend: float
) -> None:
    scheduler = build_scheduler(
        Scheduler,
        max_num_seqs=2,
        asynchronous=bool(lag),
        lengthwise={"settings": {**SRPT, "blend": blend}},
    )
    engine = CheckedEngine(scheduler, lag)
    compiling = [engine.add(_ask(f"blocked{i}", 3, structured=True)) for i in range(60)]
    for i in range(3):
        engine.add(_ask(f"ready{i}", 50 + i))
    for _ in range(60):
        engine.step()
    assert "ready0" in engine.finished
    for request in compiling:
        request.structured_output_request.grammar = AnyText()
    engine.drain()
    assert len(engine.finished) == 63


def test_a_grammar_that_does_not_compile_ends_its_request_alone() -> None:
    scheduler = build_scheduler(Scheduler, max_num_seqs=2, lengthwise={"settings": SRPT})
    engine = CheckedEngine(scheduler)
    broken = engine.add(_ask("broken", 3, structured=True))
    engine.add(_ask("other", 20))
    engine.step()
    broken.structured_output_request.grammar = ValueError("no such grammar")
    engine.run()
    assert engine.finished == {"broken": "error", "other": "stop"}
    assert len(scheduler._live) == 0


@pytest.mark.parametrize("lag", [0, 1])
def test_a_batch_never_holds_more_adapters_than_allowed(lag: int) -> None:
    scheduler = build_scheduler(
        Scheduler,
        num_blocks=80,
        max_num_seqs=4,
        max_loras=2,
        asynchronous=bool(lag),
        lengthwise={"settings": SRPT},
    )
    engine = CheckedEngine(scheduler, lag)
    rng = random.Random(0)
    for number in range(150):
        if rng.random() < 0.3:
            engine.add(_ask(f"r{number}", rng.randint(1, 60), lora=rng.randint(0, 4)))
        step = engine.step()
        adapters = {engine.asked[request_id].lora for request_id, _ in step.scheduled} - {0}
        assert len(adapters) <= 2
    assert any(p.reason == "newcomer" for p in engine.preemptions)
    engine.drain()


def test_one_that_waits_for_an_adapter_is_passed_over_until_there_is_room() -> None:
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=2, max_loras=1, lengthwise={"settings": {**SRPT, "policy": "sjf"}}
    )
    engine = CheckedEngine(scheduler)
    engine.add(_ask("first", 30, lora=1))
    engine.step()
    engine.add(_ask("shorter", 5, lora=2))
    engine.add(_ask("same adapter", 100, lora=1))
    engine.step()
    assert {r.request_id for r in scheduler.running} == {"first", "same adapter"}
    engine.drain()
    assert next(iter(engine.finished)) == "first"


def test_nobody_makes_way_for_an_adapter_that_another_newcomer_leaves_no_room_for() -> None:
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=2, max_loras=1, lengthwise={"settings": SRPT}
    )
    engine = CheckedEngine(scheduler)
    for name in ("long", "longer"):
        engine.add(_ask(name, 100 + len(name)))
    for _ in range(3):
        engine.step()
    engine.add(_ask("one adapter", 4, lora=1))
    engine.add(_ask("another adapter", 5, lora=2))
    for _ in range(30):
        engine.step()  # `CheckedEngine` fails if somebody made way in vain
    assert set(engine.finished) == {"one adapter", "another adapter"}
    engine.drain()


class _Running:
    """Counts how often its adapter is asked for."""

    asked = 0

    @property
    def lora_request(self) -> None:
        self.asked += 1


@pytest.mark.parametrize(("max_loras", "adapters"), [(0, True), (2, False), (2, True)])
def test_adapters_of_the_batch_are_gathered_only_where_they_count(
    max_loras: int, adapters: bool
) -> None:
    scheduler = build_scheduler(Scheduler, max_loras=max_loras, lengthwise={"settings": SRPT})
    request = _Running()
    scheduler.running.append(request)
    Room(scheduler, adapters)
    assert request.asked == (1 if max_loras and adapters else 0)


def _turn(name: str, prompt: list[int], answer: int, more: bool) -> Ask:
    """One input of a session, answered by exactly so many tokens."""
    hints = {"lengthwise_true_tokens": answer}
    return Ask(
        name, prompt, answer, max_tokens=answer, ignore_eos=True, hints=hints, resumable=more
    )


class _Sessions:
    """Streaming-input sessions among ordinary requests: each gets its next input when it waits."""

    def __init__(self, seed: int, turns: int = 3) -> None:
        self._rng = random.Random(seed)
        self._turns = turns
        self._left: dict[str, int] = {}
        self._number = 0

    def act(self, engines: list[SteppedEngine]) -> None:
        rng = self._rng
        if rng.random() < 0.15 and self._number < 60:
            self._number += 1
            session = rng.random() < 0.5
            name = f"{'s' if session else 'r'}{self._number}"
            if session:
                self._left[name] = self._turns
            self._submit(name, engines, session)
        for name in list(self._left):
            status = engines[0].requests[name].status.name
            if status == "WAITING_FOR_STREAMING_REQ" and rng.random() < 0.3:
                self._left[name] -= 1
                self._submit(name, engines, self._left[name] > 0)
                if self._left[name] == 0:
                    del self._left[name]

    def _submit(self, name: str, engines: list[SteppedEngine], more: bool) -> None:
        answer = self._rng.randint(1, 30)
        prompt = [self._rng.randrange(100, 1000) for _ in range(self._rng.randint(1, 40))]
        for engine in engines:
            engine.add(_turn(name, prompt, answer, more))

    @property
    def open(self) -> bool:
        return bool(self._left) or self._number < 60


@pytest.mark.parametrize("lag", [0, 1])
def test_streaming_input_under_fcfs_is_stock_step_for_step(lag: int) -> None:
    stock, ours = stock_and_ours({"policy": "fcfs"}, lag, num_blocks=60, max_num_seqs=4)
    sessions = _Sessions(seed=lag)
    steps = 0
    while sessions.open or stock.live():
        sessions.act([stock, ours])
        assert ours.step() == stock.step()
        steps += 1
        assert steps < 20_000
    assert ours.answers == stock.answers


@pytest.mark.parametrize("policy", ["srpt", "trail", "hrrn", "mlfq"])
@pytest.mark.parametrize("lag", [0, 1])
def test_streaming_input_in_another_order_gives_the_same_answers(lag: int, policy: str) -> None:
    answers = []
    for scheduler_class in (None, Scheduler):
        scheduler = build_scheduler(
            scheduler_class,
            num_blocks=60,
            max_num_seqs=4,
            asynchronous=bool(lag),
            lengthwise={"settings": {**SRPT, "policy": policy}},
        )
        engine = SteppedEngine(scheduler, lag, check_memory=True)
        rng = random.Random(3)
        # A waiting session keeps its slot, so that there may be fewer of them than slots.
        for turn in range(4):
            for name in ("session0", "session1", "session2"):
                length = rng.randint(1, 30)
                prompt = [100 + length] * (5 * turn + 3)
                engine.add(_turn(name, prompt, length, more=True))
            for number in range(6):
                engine.add(_ask(f"r{turn}-{number}", rng.randint(1, 40)))
            # Some get their next input while they wait for it, others before.
            for _ in range(40):
                engine.step()
        for _ in range(400):
            engine.step()
        assert len(engine.finished) == 24
        statuses = [request.status.name for request in scheduler.requests.values()]
        assert statuses == ["WAITING_FOR_STREAMING_REQ"] * 3
        engine.abort(engine.live())
        answers.append(engine.answers)
        assert scheduler.reset_prefix_cache()
    assert len(scheduler._live) == 0
    assert answers[0] == answers[1]


#: Who needs more than a slot, and has it.
NEEDS: dict[str, dict[str, Any]] = {
    "grammar": {"structured": True},
    "image": {"images": (("cat", 4, 10),)},
    "images": {"images": (("cat", 4, 10), ("dog", 14, 6))},
    "more images than a step computes": {
        "images": tuple((f"page{number}", number, 1) for number in range(18))
    },
}


def _add_one_in_need(engine: CheckedEngine, need: str, answer: int) -> None:
    request = engine.add(_ask("needs", answer, **NEEDS[need]))
    if need == "grammar":
        request.structured_output_request.grammar = AnyText()


@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("pausing", [False, True])
@pytest.mark.parametrize("need", NEEDS)
def test_longer_ones_make_way_for_who_has_what_it_needs(need: str, pausing: bool, lag: int) -> None:
    scheduler = build_scheduler(
        Scheduler,
        max_num_seqs=8,
        max_num_active_seqs=2,
        asynchronous=bool(lag),
        encoder_embeddings=16,
        lengthwise={"settings": {**SRPT, "pausing": pausing}},
    )
    engine = CheckedEngine(scheduler, lag)
    for number in range(2):
        engine.add(_ask(f"long{number}", 300))
    for _ in range(3):
        engine.step()
    _add_one_in_need(engine, need, 20)
    for _ in range(20):
        engine.step()
    assert len(engine.answers["needs"]) > 5
    engine.drain()


@pytest.mark.parametrize("need", NEEDS)
def test_swaps_do_not_go_past_one_that_is_overdue(need: str) -> None:
    """It was overtaken as often as may be; the step that takes it in makes others make way, too."""
    scheduler = build_scheduler(
        Scheduler,
        max_num_seqs=4,
        encoder_embeddings=16,
        lengthwise={"settings": {**SRPT, "max_overtakes": 4}},
    )
    engine = CheckedEngine(scheduler, max_overtakes=4)
    for number in range(2):
        engine.add(_ask(f"first{number}", 60))
    engine.step()
    _add_one_in_need(engine, need, 90)
    for number in range(4):
        engine.add(_ask(f"longer{number}", 80))
    for number in range(4):
        engine.add(_ask(f"short{number}", 5))
    engine.run()  # its bound is checked in each step
    assert set(engine.finished.values()) == {"stop"}


def test_a_broken_grammar_ends_while_others_are_paused() -> None:
    settings = {**SRPT, "pausing": True}
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=8, max_num_active_seqs=2, lengthwise={"settings": settings}
    )
    engine = CheckedEngine(scheduler)
    for number in range(2):
        engine.add(_ask(f"long{number}", 200))
    for _ in range(3):
        engine.step()
    broken = engine.add(_ask("broken", 30, structured=True))
    broken.structured_output_request.grammar = ValueError("no such grammar")
    for number in range(40):
        if number % 8 == 0:
            engine.add(_ask(f"short{number}", 20))
        engine.step()
        assert scheduler._planner.paused or number < 8
    assert engine.finished["broken"] == "error"
    engine.run()


def test_nobody_makes_way_for_an_image_that_the_encoder_has_no_room_for() -> None:
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=2, encoder_embeddings=10, lengthwise={"settings": SRPT}
    )
    engine = CheckedEngine(scheduler)
    for number in range(2):
        engine.add(_ask(f"long{number}", 100))
    engine.step()
    for number in range(2):
        engine.add(_ask(f"image{number}", 3, images=((f"image{number}", 0, 8),)))
    while not engine.preemptions:
        step = engine.step()
    assert step.admitted == ("image0",)
    assert len(engine.preemptions) == 1
    engine.drain()


def test_who_finds_no_room_in_the_encoder_takes_no_adapter_from_others() -> None:
    scheduler = build_scheduler(
        Scheduler,
        max_num_seqs=2,
        max_loras=1,
        encoder_embeddings=10,
        lengthwise={"settings": SRPT},
    )
    engine = CheckedEngine(scheduler)
    for number in range(2):
        engine.add(_ask(f"long{number}", 100))
    engine.step()
    engine.add(_ask("first image", 2, images=(("first", 0, 8),)))
    engine.add(_ask("second image", 3, lora=1, images=(("second", 0, 8),)))
    engine.add(_ask("no image", 4, lora=2))
    while not engine.preemptions:
        step = engine.step()
    assert step.admitted == ("first image", "no image")
    assert len(engine.preemptions) == 2
    engine.drain()


@pytest.mark.parametrize("blend", [1.0, 0.6])
@pytest.mark.parametrize("slots", range(2, 7))
def test_who_is_ready_gets_in_behind_any_number_that_wait(slots: int, blend: float) -> None:
    """They are the first in the queue, where they are long, and the first by the policy."""
    settings = {**SRPT, "policy": "sjf", "blend": blend}
    scheduler = build_scheduler(Scheduler, max_num_seqs=slots, lengthwise={"settings": settings})
    engine = SteppedEngine(scheduler)
    for kind, answer in (("first", 500), ("short", 3)):
        for number in range(40):
            engine.add(_ask(f"{kind}{number}", answer, structured=True))
    for number in range(slots):
        engine.add(_ask(f"ready{number}", 60))
    engine.step()
    assert len(scheduler.running) == slots


def test_a_step_asks_for_the_order_only_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each time takes a walk through the queue, however many in it wait for something else."""
    settings = {**SRPT, "policy": "sjf"}
    scheduler = build_scheduler(Scheduler, max_num_seqs=2, lengthwise={"settings": settings})
    engine = SteppedEngine(scheduler)
    for number in range(2000):
        engine.add(_ask(f"blocked{number}", 3, structured=True))
    asked, next_rows = [], scheduler._planner.next_rows

    def count(*arguments: Any) -> Any:
        asked.append(arguments)
        return next_rows(*arguments)

    monkeypatch.setattr(scheduler._planner, "next_rows", count)
    engine.step()
    assert 2 <= len(asked) <= 10
