"""The queue's promises, for any sequence of events: bounds in flight and in waiting, and the order.

The order is checked against a plain model that knows nothing of tables: who has the lowest class,
then those overtaken too often in order of arrival, then the lowest prediction, then who came first.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.counters import Counters
from lengthwise.gateway.limits import Limits, Room
from lengthwise.gateway.ranked_queue import Dispatcher, Entry, Queue
from lengthwise.gateway.upstream import Pool, Upstream
from lengthwise.hints.question import MOST_ANSWERS
from lengthwise.policy import register
from lengthwise.policy.discipline import make_discipline
from lengthwise.predict.prediction import MOST_TOKENS, Prediction

STAND_IN = 128.0  # before anything is predicted
OVERTAKES = 3


@dataclass
class Modelled:
    """A request as the plain model knows it."""

    entry: Entry
    arrival: int
    expected: float
    overtaken: int = 0
    turn: asyncio.Task[Upstream] | None = None
    went: bool = False
    forwarded: bool = False
    place: int = field(default=0)
    overtook: list[Modelled] = field(default_factory=list)  # since all were ranked last

    @property
    def key(self) -> tuple[Any, ...]:
        overdue = self.overtaken >= OVERTAKES
        rank = self.arrival if overdue else self.expected
        return self.entry.priority, not overdue, rank, self.place


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("come"),
            st.integers(1, 4),  # answers
            st.integers(0, 1),  # class
            st.one_of(st.none(), st.integers(1, 500)),  # predicted tokens
        ),
        st.tuples(st.just("end"), st.integers(0, 30)),
        st.tuples(st.just("leave"), st.integers(0, 30)),
        st.tuples(st.just("forwarded"), st.integers(0, 30)),
        st.tuples(st.just("not taken"), st.integers(0, 30)),
        st.tuples(st.just("lost"), st.integers(0, 1)),
        st.tuples(st.just("limit"), st.integers(0, 1), st.integers(1, 4)),
    ),
    max_size=40,
)


async def follow(events: list[Any]) -> None:
    counters = Counters()
    queue = Queue(make_discipline("sjf", max_overtakes=OVERTAKES), counters)
    pool = Pool([Upstream("a", 2), Upstream("b", 3)])
    dispatcher = Dispatcher(queue, pool, Room(Limits()), clock=lambda: 0.0)
    there: list[Modelled] = []
    ended: Counter[str] = Counter()
    places = fronts = forwarded = admissions = 0

    def went(now: Modelled) -> None:
        """The model says who should have gone, and notes whom that overtook."""
        waiting = [each for each in there if not each.went]
        assert now is min(waiting, key=lambda each: each.key)
        now.went = True
        for each in waiting:
            if each.arrival < now.arrival and now.entry.priority >= each.entry.priority:
                each.overtaken += 1
                now.overtook.append(each)

    def came_to_nothing(one: Modelled) -> None:
        """It went and was not forwarded: it has overtaken nobody, if nobody was ranked since."""
        for each in one.overtook:
            each.overtaken -= 1
        one.overtook.clear()

    async def settle() -> None:
        for _ in range(5):
            await asyncio.sleep(0)

    take = queue.take

    def taking(entry: Entry) -> None:
        take(entry)
        went(next(each for each in there if each.entry is entry))

    rank = queue.next

    def ranking(now_s: float) -> Entry | None:
        if queue.waiting:
            for each in there:
                each.overtook.clear()
        return rank(now_s)

    queue.take, queue.next = taking, ranking  # type: ignore[method-assign]
    for number, (kind, *what) in enumerate(events):
        running = [each for each in there if each.went]
        going = [each for each in running if not each.forwarded]
        waiting = [each for each in there if not each.went]
        if kind == "come":
            answers, priority, tokens = what
            entry = Entry(str(number), answers, priority)
            places += 1
            arrival = dispatcher.add(entry)
            one = Modelled(entry, arrival, STAND_IN, place=places)
            there.append(one)
            if tokens is not None:
                queue.predict(entry, Prediction(*[float(tokens)] * 5), 1)
                one.expected = float(tokens)
            one.turn = asyncio.create_task(dispatcher.turn(entry, 1e9))
        elif kind in ("end", "leave") and (them := running if kind == "end" else waiting):
            one = them[what[0] % len(them)]
            assert one.turn is not None
            if kind == "leave":
                one.turn.cancel()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            there.remove(one)
            ended[one.entry.id] += 1
            if one in going:
                came_to_nothing(one)
            dispatcher.release(one.entry)
        elif kind == "forwarded" and going:
            one = going[what[0] % len(going)]
            one.forwarded = True
            forwarded += 1
            dispatcher.forwarded(one.entry)
        elif kind == "not taken" and going:
            one = going[what[0] % len(going)]
            assert one.turn is not None
            await one.turn
            fronts -= 1
            one.went, one.place = False, fronts
            came_to_nothing(one)
            dispatcher.put_back(one.entry)
            one.turn = asyncio.create_task(dispatcher.turn(one.entry, 1e9))
        elif kind == "lost":
            upstream = pool.upstreams[what[0]]
            upstream.reachable = not upstream.reachable
            dispatcher.wake()
        elif kind == "limit":
            pool.upstreams[what[0]].limit = what[1]
            dispatcher.wake()
        before = [each.in_flight for each in pool.upstreams]
        await settle()
        assert counters.admissions == forwarded >= admissions
        admissions = counters.admissions
        for each, was in zip(pool.upstreams, before, strict=True):
            # A limit that falls takes nothing back, but nobody comes in above it.
            assert 0 <= each.in_flight <= max(each.limit, was)
        assert queue.waiting == sum(not each.went for each in there)
        if queue.waiting:  # nobody waits for no reason
            first = min((each for each in there if not each.went), key=lambda each: each.key)
            assert pool.choose(first.entry.answers) is None
    for upstream in pool.upstreams:
        upstream.reachable = True
    for _ in range(len(there)):
        dispatcher.wake()
        await settle()
        one = next(each for each in there if each.went)
        there.remove(one)
        dispatcher.release(one.entry)
    assert counters.admissions == forwarded
    assert not there
    assert pool.in_flight == queue.waiting == 0
    assert set(ended.values()) <= {1}
    assert counters.switched_off == 0


@given(EVENTS)
@settings(deadline=None, max_examples=150)
def test_never_too_many_in_flight_and_the_order_is_the_policys(events: list[Any]) -> None:
    asyncio.run(follow(events))


@pytest.mark.parametrize(("max_lead", "goes"), [(None, False), (0.0, True)])
def test_work_done_since_a_request_came_brings_it_forward(
    max_lead: float | None, goes: bool
) -> None:
    """Short ones keep coming: what waits is 210 tokens at most, seven of them."""
    queue = Queue(make_discipline("sjf", max_lead=max_lead), Counters())

    def add(name: str, tokens: float) -> None:
        queue.add(Entry(name), 0.0)
        queue.predict(Entry(name), Prediction(*[tokens] * 5), 1)

    add("long", 60.0)
    went = []
    for number in range(40):
        while queue.waiting < 6:
            add(f"{number}-{queue.waiting}", 30.0)
        entry = queue.next(0.0)
        assert entry is not None
        queue.take(entry)
        queue.forwarded(entry)
        queue.remove(entry, output_tokens=30)
        went.append(entry.id)
    assert ("long" in went[4:9]) == goes
    assert ("long" in went) == goes


def test_requests_that_ask_for_more_than_anybody_reads_do_not_overflow_the_work_done() -> None:
    """Of an answer that said nothing, what was predicted counts, and a client may declare that."""
    counters = Counters()
    queue = Queue(make_discipline("sjf"), counters)
    for number in range(5000):
        entry = Entry(str(number), MOST_ANSWERS)
        queue.add(entry, 0.0)
        queue.predict(entry, Prediction(*[MOST_TOKENS] * 5), 1)
        assert queue.next(0.0) is entry
        queue.take(entry)
        queue.forwarded(entry)
        queue.remove(entry)
    assert counters.switched_off == 0


def test_a_policy_that_raises_gives_way_to_fcfs() -> None:
    @register("gateway-raises")
    def raises(request: Any, now: float, parameters: Any) -> float:
        """Raises where there is a prediction."""
        if request.expected > 0:
            raise ValueError
        return 0.0

    counters = Counters()
    queue = Queue(make_discipline("gateway-raises"), counters)
    entries = [Entry(str(number)) for number in range(3)]
    for entry in entries:
        queue.add(entry, 0.0)
    for entry in entries:
        assert queue.next(1.0) is entry
        queue.take(entry)
    assert counters.switched_off == 1


def test_nobody_is_ranked_while_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full queue is ranked once for each that goes, and not for each that comes."""
    ranked = 0

    async def run() -> None:
        nonlocal ranked
        queue, upstream = Queue(make_discipline("srpt"), Counters()), Upstream("http://a", 1)
        dispatcher = Dispatcher(queue, Pool([upstream]), Room(Limits()))
        rank = queue.next

        def counted(now_s: float) -> Entry | None:
            nonlocal ranked
            ranked += 1
            return rank(now_s)

        monkeypatch.setattr(queue, "next", counted)
        entries = [Entry(str(number)) for number in range(5)]
        for entry in entries:
            dispatcher.add(entry)
            dispatcher.wake()
        assert (ranked, upstream.in_flight, queue.waiting) == (1, 1, 4)
        dispatcher.release(entries[0])
        assert (ranked, upstream.in_flight, queue.waiting) == (2, 1, 3)

    asyncio.run(run())
