"""What begins anew with a session's turn, and what says nothing of memory or of predictions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

pytest.importorskip("vllm", reason="needs vLLM: pip install 'lengthwise[cpu]'")

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.errors import InputError
from lengthwise.request import LOOKING, PARKED, RUNNING, WAITING
from lengthwise.telemetry.rolling_tau import GROUP
from lengthwise.vllm import Scheduler
from lengthwise.vllm.compat import schedulers

SJF = {"policy": "sjf", "predictor": "declared", "tau_floor": None}


def declared(name: str, tokens: int, answer: int | None = None, **more: object) -> Ask:
    hints = {"lengthwise_expected_tokens": tokens}
    return Ask(name, [7] * 8, answer or tokens, hints=hints, **more)  # type: ignore[arg-type]


def served(slots: int = 1, **settings: object) -> SteppedEngine:
    chosen = {"settings": {**SJF, **settings}}
    return SteppedEngine(build_scheduler(Scheduler, max_num_seqs=slots, lengthwise=chosen))


def test_a_turn_waits_for_itself_alone() -> None:
    engine = served(slots=2, max_overtakes=1000)
    scheduler, seconds = engine.scheduler, [0.0]
    scheduler.begin_anew(lambda: seconds[0])
    live = scheduler._live
    engine.add(declared("session", 3, max_tokens=3, ignore_eos=True, resumable=True))
    for _ in range(6):
        engine.step()
    table, row = live.table, live.row("session")
    assert engine.requests["session"].status.name == "WAITING_FOR_STREAMING_REQ"
    assert table["state"][row] == PARKED
    table["overtaken"][row], table["look"][row] = 7, LOOKING
    for name in ("a", "b"):
        engine.add(declared(name, 300))
    seconds[0] = 100.0
    engine.step()
    engine.add(declared("session", 500, max_tokens=3, ignore_eos=True, resumable=True))
    for _ in range(3):
        seconds[0] += 1.0
        engine.step()
    assert table["arrival_s"][row] == 100.0
    assert table["arrival_index"][row] > max(table["arrival_index"][live.row(x)] for x in "ab")
    assert table["overtaken"][row] == 0
    assert table["look"][row] == 0
    assert table["state"][row] in (PARKED, RUNNING, WAITING)
    engine.abort(["a", "b"])
    for _ in range(3):
        engine.step()
    assert engine.requests["session"].status.name == "WAITING_FOR_STREAMING_REQ"
    assert table["state"][row] == PARKED
    engine.abort(["session"])
    engine.run()
    assert len(live) == 0
    assert not scheduler.waiting.parked


def test_a_turn_brings_its_own_limit_deadline_and_prediction() -> None:
    """What the caller said of the turn before says nothing of this one."""
    engine = served(slots=2)
    live = engine.scheduler._live

    def turn(tokens: int, limit: int, due_ms: float | None = None, said: bool = True) -> Ask:
        hints: dict[str, object] = {"lengthwise_expected_tokens": tokens} if said else {}
        if due_ms is not None:
            hints["lengthwise_ttft_deadline_ms"] = due_ms
        return Ask("session", [7] * 8, tokens, hints=hints, max_tokens=limit, resumable=True)

    def seen(ask: Ask, steps: int) -> tuple[float, ...]:
        engine.add(ask)
        for _ in range(steps):
            engine.step()
        columns = live.table[live.row("session")]
        names = ("most_tokens", "deadline_s", "expected", "score")
        return tuple(float(columns[name]) for name in names)

    assert seen(turn(4, 4, 200.0), 8) == (4.0, 0.2, 4.0, 4.0)
    assert seen(turn(60, 70, 9000.0), 2) == (70.0, 9.0, 60.0, 60.0)
    for _ in range(70):
        engine.step()
    assert seen(turn(6, 5), 8)[:3] == (5.0, 0.0, 5.0), "cut where this turn is"
    # One of which nothing is said: it is recorded as not predicted, not as the turn before.
    seen(turn(8, 9, said=False), 2)
    assert engine.scheduler._predictions.forget("session")["score"] is None


def test_neither_resets_nor_aborts_are_taken_for_want_of_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = served(slots=8)
    scheduler = engine.scheduler
    told: list[bool] = []
    monkeypatch.setattr(
        scheduler._planner.facts, "left", lambda thrown_out: told.append(thrown_out)
    )
    for number in range(8):
        engine.add(declared(f"r{number}", 50))
    for _ in range(3):
        engine.step()
    scheduler.reset_prefix_cache(reset_running_requests=True)
    engine.abort([f"r{number}" for number in range(4)])
    assert told == []
    engine.run()
    assert told == [False] * 4
    counters = scheduler.counters
    assert (counters.memory_preemptions, counters.recomputed_tokens) == (0, 0)
    assert counters.finished == 8


def test_an_external_launcher_is_refused_in_one_line() -> None:
    def refused(ranks: int) -> None:
        parallel = SimpleNamespace(
            distributed_executor_backend="external_launcher", world_size=ranks
        )
        model = SimpleNamespace(is_diffusion=False)
        config = SimpleNamespace(
            model_config=model, parallel_config=parallel, kv_transfer_config=None
        )
        schedulers.refuse_unsupported(config)

    refused(1)
    with pytest.raises(InputError, match="external launcher") as error:
        refused(2)
    assert "\n" not in str(error.value)


def test_limits_of_callers_do_not_make_predictions_look_wrong() -> None:
    """Predictions are right, and half of the callers cut at 20. Among their answers only the short
    ones end by themselves, and say nothing of the order of all."""
    engine = served(slots=8)
    scheduler = engine.scheduler
    seen: list[int | None] = []
    ended = scheduler._observers.tau.ended

    def watched(index: int, score: float | None, length: int | None) -> None:
        seen.append(length)
        ended(index, score, length)

    scheduler._observers.tau.ended = watched
    expected = []
    for number in range(2 * GROUP):
        predicted, answer, limit = 10 + number % 40, 5 + number % 30, 20 if number % 2 else None
        engine.add(declared(f"r{number}", predicted, answer, max_tokens=limit))
        engine.step()
        if limit is None or (predicted <= limit and answer <= limit):
            expected.append(answer)
    engine.run()
    assert sorted(length for length in seen if length is not None) == sorted(expected)
    assert len(seen) == 2 * GROUP


@pytest.mark.parametrize("answer", [6, 7, 8])
def test_a_session_whose_turn_ends_by_a_token_on_its_way_is_not_lost(answer: int) -> None:
    """It looks long, so that somebody shorter would preempt it; vLLM would then forget it."""
    settings = {"policy": "srpt", "predictor": "declared", "preemption": "greedy"}
    scheduler = build_scheduler(
        Scheduler, max_num_seqs=2, asynchronous=True, lengthwise={"settings": settings}
    )
    engine = SteppedEngine(scheduler, lag=1)
    engine.add(declared("session", 500, answer, resumable=True))
    engine.add(declared("b", 60))
    for step in range(30):
        if step == 7:
            engine.add(declared("c", 10))
        engine.step()
    assert engine.requests["session"].status.name == "WAITING_FOR_STREAMING_REQ"
    assert [each.request_id for each in scheduler.kv_holding_waiting] == ["session"]


def test_a_request_that_is_queued_twice_is_counted_once() -> None:
    """vLLM adds a preempted session anew when its turn ends, and removes it once."""
    scheduler = served().scheduler
    request = declared("a", 5).request(None)
    scheduler.add_request(request)
    scheduler.waiting.add_request(request)
    assert (len(scheduler.waiting), scheduler.waiting.of_class(0)) == (1, 1)
    scheduler.waiting.remove_request(request)
    assert (len(scheduler.waiting), scheduler.waiting.of_class(0)) == (0, 0)
