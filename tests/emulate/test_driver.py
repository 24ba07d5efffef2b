"""What a driver does besides arrivals: closed loops, clients that go away, recorded steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from lengthwise.emulate.driver import Asked, Served, VirtualEngine, open_virtual_engine
from lengthwise.errors import LengthwiseError
from tests.support.virtual_workloads import COST, LONGEST, random_engine, random_workload

POLICIES = ("fcfs", "oracle")


def requests_of(seed: int, lag: int) -> tuple[list[Asked], dict[str, object]]:
    """Requests that come over some time, and nothing but the engine's limits in common."""
    workload = random_workload(seed, limits(lag))
    asked = [replace(each, arrival_s=0.02 * place) for place, each in enumerate(workload.asked)]
    return asked, workload.settings


def limits(lag: int):  # type: ignore[no-untyped-def]
    """An engine whose memory is scarce."""
    return replace(random_engine(3), slots=4, kv_blocks=40, lag=lag)


def times(served: list[Served]) -> list[list[float]]:
    return [each.token_s for each in served]


def free_blocks(engine: VirtualEngine) -> int:
    return int(engine.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


@pytest.mark.parametrize("lag", [0, 1])
def test_a_closed_loop_sends_when_a_client_is_free(lag: int) -> None:
    """Never more at once than clients; the same as arrivals at the times at which it sent."""
    asked, _ = requests_of(11, lag)
    with open_virtual_engine(COST, limits(lag), longest=LONGEST) as engine:
        for policy in POLICIES:
            engine.use({"policy": policy})
            closed = engine.run(asked, clients=3)
            for one in closed:
                others = sum(each.sent_s <= one.sent_s < each.finish_s for each in closed)
                assert others <= 3
            ends = {each.finish_s for each in closed} | {0.0}
            assert {each.sent_s for each in closed} <= ends
            again = engine.run(
                [
                    replace(each, arrival_s=one.sent_s)
                    for each, one in zip(asked, closed, strict=True)
                ]
            )
            assert times(again) == times(closed)


@pytest.mark.parametrize("lag", [0, 1])
def test_clients_that_go_away_leave_nothing_behind(lag: int) -> None:
    asked, settings = requests_of(12, lag)
    leaving = [
        replace(each, abort_s=each.arrival_s + 0.05 * (place % 5)) if place % 3 == 0 else each
        for place, each in enumerate(asked)
    ]
    with open_virtual_engine(COST, limits(lag), longest=LONGEST, settings=settings) as engine:
        before = free_blocks(engine)
        served = engine.run(leaving)
        assert free_blocks(engine) == before
        assert times(engine.run(leaving)) == times(served)
        # The order of the others is another without them, so that leaving is felt.
        patient = engine.run(asked)
    assert {each.finished for each in served} == {"stop", "abort"}
    assert times(patient) != times(served)
    longest_step_s = 0.1
    for one, each in zip(served, leaving, strict=True):
        if one.finished == "abort":
            assert len(one.token_s) < int(each.output_tokens or 0)
            assert all(time_s <= each.abort_s + longest_step_s for time_s in one.token_s)
        else:
            assert len(one.token_s) == each.output_tokens


def test_a_client_that_is_gone_sends_nothing() -> None:
    """In a closed loop it may go before its turn comes; the next one has it then."""
    one = Asked([5] * 20, 30)
    asked = [one, replace(one, abort_s=0.01), replace(one, abort_s=0.1), one]
    with open_virtual_engine(COST, limits(0), longest=LONGEST) as engine:
        served = engine.run(asked, clients=1)
    assert [each.finished for each in served] == ["stop", "abort", "abort", "stop"]
    assert served[1].token_s == served[2].token_s == []
    assert served[3].sent_s == served[0].finish_s


@pytest.mark.parametrize("lag", [0, 1])
def test_steps_take_what_was_recorded(lag: int) -> None:
    asked, settings = requests_of(13, lag)
    with open_virtual_engine(COST, limits(lag), longest=LONGEST, settings=settings) as engine:
        plenty = [0.5 ** (place % 5) for place in range(5000)]
        served = engine.run([replace(each, arrival_s=0.0) for each in asked], durations=plenty)
        ends, now_s = set(), 0.0
        for seconds in plenty:
            now_s += seconds
            ends.add(now_s)
        assert {time_s for each in served for time_s in each.token_s} <= ends
        assert times(engine.run(asked)) != times(served)  # and by their costs again
        with pytest.raises(LengthwiseError, match="more steps than were recorded"):
            engine.run(asked, durations=plenty[:5])
