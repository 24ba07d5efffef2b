"""Pauses and looks under two runners that answer with a digest of the KV that they really read."""

from __future__ import annotations

import random
from typing import Any

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.request import LOOKED, RUNNING
from lengthwise.vllm import Scheduler
from lengthwise.vllm.hidden_states import ProbeOutput, attach
from tests.support.digest_runner import FirstRunner, SecondRunner, digest_answer
from tests.support.virtual_probe import listen, random_distributions

PLACES = 12


def digest_engine(lag: int, model_runner: int, num_blocks: int = 2000) -> SteppedEngine:
    """Three of twelve run at once; whoever looks shorter comes before who runs."""
    scheduler = build_scheduler(
        Scheduler,
        num_blocks=num_blocks,
        max_num_seqs=PLACES,
        max_num_active_seqs=3,
        token_budget=64,
        asynchronous=bool(lag),
        model_runner=1 if model_runner == 1 else 2,
        lengthwise={
            "settings": {
                "policy": "srpt",
                "predictor": "oracle",
                "preemption": "greedy",
                "pausing": True,
                "max_overtakes": None,
            }
        },
    )
    engine = SteppedEngine(scheduler, lag)
    given = (engine._lengths, num_blocks, scheduler.block_size)
    engine.runner = (
        FirstRunner(bool(lag), *given) if model_runner == 1 else SecondRunner(PLACES, *given)
    )
    return engine


def look(engine: SteppedEngine) -> None:
    """From now on a probe reads prompts, and waiting requests are looked at."""
    scheduler, execute = engine.scheduler, engine.runner.execute
    listen(scheduler)
    scheduler.apply_now(scheduler._active.settings.model_copy(update={"peek": True}))
    read: set[str] = set()

    def execute_and_read(step: Any) -> Any:
        output = execute(step)
        ids = [
            name
            for name, tokens in zip(output.req_ids, output.sampled_token_ids, strict=True)
            if tokens and name not in read
        ]
        read.update(ids)
        if ids:
            lengths = [engine.asked[name].answer for name in ids]
            likely = random_distributions(lengths, seed=len(read))
            attach(output, [ProbeOutput(prompt_ids=ids, prompt=likely)])
        return output

    engine.runner.execute = execute_and_read


def asks(count: int, seed: int, said: float = 1.0) -> list[Ask]:
    """Some begin alike, so that they share blocks; `said`: what is predicted of the length."""
    generator = random.Random(seed)
    found = []
    for number in range(count):
        own = [generator.randrange(2, 1000) for _ in range(generator.randrange(1, 60))]
        length = generator.choice([3, 8, 20, 60, 150])
        found.append(
            Ask(
                f"r{number}",
                [7] * generator.choice([0, 20, 40]) + own,
                answer=length,
                hints={"lengthwise_true_tokens": max(1, round(said * length))},
            )
        )
    return found


def serve(engine: SteppedEngine, asked: list[Ask]) -> None:
    for place, ask in enumerate(asked):
        engine.add(ask)
        if place % 2:
            for _ in range(5):
                engine.step()
    engine.run()


def right(engine: SteppedEngine, ask: Ask) -> bool:
    return engine.answers[ask.request_id] == digest_answer(ask.prompt, ask.answer)


@pytest.mark.parametrize("num_blocks", [28, 2000])
@pytest.mark.parametrize("model_runner", [1, 2])
@pytest.mark.parametrize("lag", [0, 1])
def test_every_answer_is_that_of_its_own_kv(lag: int, model_runner: int, num_blocks: int) -> None:
    engine = digest_engine(lag, model_runner, num_blocks)
    scarce = num_blocks == 28
    asked = asks(80, seed=num_blocks + lag, said=0.6 if scarce else 1.0)
    serve(engine, asked)
    assert [ask.request_id for ask in asked if not right(engine, ask)] == []
    counters = engine.scheduler.counters
    assert counters.pauses > 10
    assert (counters.memory_preemptions > 0) == scarce


@pytest.mark.parametrize("model_runner", [1, 2])
@pytest.mark.parametrize("lag", [0, 1])
def test_answers_that_were_looked_at_are_right(lag: int, model_runner: int) -> None:
    engine = digest_engine(lag, model_runner)
    look(engine)
    asked = asks(80, seed=7 + lag, said=3.0)
    serve(engine, asked)
    assert [ask.request_id for ask in asked if not right(engine, ask)] == []
    assert engine.scheduler.counters.peeks > 10
    assert engine.scheduler.counters.recomputed_tokens == 0


@pytest.mark.parametrize("policy", ["srpt", "sjf"])
def test_who_was_looked_at_waits_no_more_once_nobody_is(policy: str) -> None:
    """Settings change while some have been looked at: once they run, nobody overtakes them."""
    engine = digest_engine(lag=0, model_runner=1)
    look(engine)
    live, asked = engine.scheduler._live, asks(80, seed=7, said=3.0)

    def looked_at() -> list[str]:
        return [name for name in live.request_ids() if live.table["look"][live.row(name)] == LOOKED]

    for ask in asked:
        engine.add(ask)
        engine.step()
    while not looked_at():
        engine.step()
    names = looked_at()
    ordinary = {"policy": policy, "peek": False, "pausing": False, "preemption": "never"}
    engine.scheduler.apply_now(engine.scheduler._active.settings.model_copy(update=ordinary))
    begun: dict[str, int] = {}
    while len(engine.finished) < len(asked):
        engine.step()
        rows = {name: live.table[live.row(name)] for name in names if name in live}
        for name, row in rows.items():
            if row["state"] == RUNNING:
                assert begun.setdefault(name, row["overtaken"]) == row["overtaken"], name
    assert begun
    assert [ask.request_id for ask in asked if not right(engine, ask)] == []


def with_one_paused(lag: int, model_runner: int) -> tuple[SteppedEngine, list[Ask]]:
    engine = digest_engine(lag, model_runner)
    asked = [
        Ask(name, [ord(name)] * 20, answer=length, hints={"lengthwise_true_tokens": length})
        for name, length in (("a", 150), ("b", 90), ("c", 90))
    ]
    for ask in asked:
        engine.add(ask)
    for _ in range(9):
        engine.step()
    asked.append(Ask("d", [9] * 20, answer=5, hints={"lengthwise_true_tokens": 5}))
    engine.add(asked[-1])
    engine.step()
    assert [request.request_id for request in engine.scheduler._planner.paused] == ["a"]
    return engine, asked


@pytest.mark.parametrize("model_runner", [1, 2])
@pytest.mark.parametrize("lag", [0, 1])
def test_one_swapped_block_gives_other_answers(lag: int, model_runner: int) -> None:
    engine, asked = with_one_paused(lag, model_runner)
    runner: Any = engine.runner
    if model_runner == 1:
        tables = [runner.requests[name].blocks for name in ("a", "b")]
    else:
        tables = [runner.places[runner.index[name]]._table for name in ("a", "b")]
    tables[0][0], tables[1][0] = tables[1][0], tables[0][0]
    engine.run()
    assert [ask.request_id for ask in asked if right(engine, ask)] == ["c", "d"]


@pytest.mark.parametrize("lag", [0, 1])
def test_tokens_that_are_not_sent_again_are_missed(lag: int) -> None:
    """With asynchronous scheduling the first runner has not seen what a paused request said."""
    engine, asked = with_one_paused(lag, model_runner=1)
    runner: Any = engine.runner
    execute = runner.execute

    def forgetful(output: Any) -> Any:
        sent = output.scheduled_cached_reqs.all_token_ids
        for name in sent:
            sent[name] = [2] * len(sent[name])
        return execute(output)

    runner.execute = forgetful
    engine.run()
    wrong = [ask.request_id for ask in asked if not right(engine, ask)]
    assert wrong == (["a"] if lag else [])
