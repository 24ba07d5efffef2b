"""A router's books and what it knows of requests, without Ray."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lengthwise.errors import InputError
from lengthwise.hints.estimate import OwnEstimator
from lengthwise.hints.question import Question, answers_of
from lengthwise.predict.prediction import Prediction
from lengthwise.reference import model_path
from lengthwise.route import Bookings, Ranks, bookings
from lengthwise.route.bookings import Prefixes, WorkPredictor, body_of, text_of

NAMES = ["a", "b", "c", "d", "e", "f", "g"]


def books(*names: str, slots: int = 1, **more: float) -> Bookings:
    made = Bookings(slots, shortest_first=False, **more)
    made.use(dict.fromkeys(names, 99), 0.0)
    return made


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_whatever_happens_the_books_balance(data: st.DataObject) -> None:
    """Replicas come and go, requests are booked, moved, released twice or never."""
    made = books("a", "b", expires_s=50.0)
    where: dict[str, str] = {}
    now = 0.0
    for step in range(data.draw(st.integers(1, 60))):
        now += 1.0
        deed = data.draw(st.sampled_from(["send", "send", "move", "end", "use", "drop", "hear"]))
        if deed == "send":
            chosen = made.choose(data.draw(st.sampled_from([None, 5.0, 90.0])), now)
            assert (chosen is None) == (len(made.replicas) == 0)
            if chosen is not None:
                made.book(f"r{step}", chosen, 5.0, now)
                where[f"r{step}"] = str(chosen)
        elif deed == "use":
            there = data.draw(st.lists(st.sampled_from(NAMES), unique=True))
            made.use(dict.fromkeys(there, 99), now)
            where = {name: at for name, at in where.items() if at in there}
        elif deed == "drop":
            gone = data.draw(st.sampled_from(NAMES))
            made.drop(gone, now)
            where = {name: at for name, at in where.items() if at != gone}
        elif deed == "hear":
            made.hear(data.draw(st.sampled_from(NAMES)), data.draw(st.integers(0, 3)), now)
        elif where:
            request = data.draw(st.sampled_from(sorted(where)))
            if deed == "move":
                to = data.draw(st.sampled_from(NAMES))
                made.book(request, to, 5.0, now)
                where[request] = to
                if to not in made.replicas:
                    del where[request]
            else:
                made.release(request, now, data.draw(st.sampled_from([None, where[request]])))
                made.release(request, now)
                del where[request]
        made.hear("nobody", 3, now)
    made.choose(1.0, now)  # sweeps
    assert len(made) <= len(where)
    made.choose(1.0, now + 1_000.0)
    assert len(made) == 0
    for name in made.replicas:
        assert (made.outstanding(name), made.work(name)) == (0, 0.0)


def test_a_refused_request_is_released_where_it_was_refused_and_not_where_it_went() -> None:
    made = books("a", "b")
    made.book("request", "a", 10.0, 0.0)
    made.book("request", "b", 10.0, 0.0)
    made.release("request", 0.0, "a")
    assert (made.outstanding("a"), made.outstanding("b")) == (0, 1)
    made.release("request", 0.0, "b")
    assert len(made) == 0


def test_a_new_replica_takes_its_share_and_a_lost_one_leaves_nothing() -> None:
    made = books("a", "b")
    for k in range(12):
        made.book(f"r{k}", "ab"[k % 2], 50.0, 0.0)
    made.use({"b": 99, "c": 99}, 0.0)
    assert len(made) == 6
    assert [made.choose(50.0, 0.0) for _ in range(3)] == ["c"] * 3
    for k in range(6):
        chosen = made.choose(50.0, 0.0)
        assert chosen == "c"
        made.book(f"n{k}", chosen, 50.0, 0.0)


def test_requests_of_other_routers_count_until_the_news_is_old() -> None:
    made = books("a", "b")
    made.book("mine", "b", 10.0, 0.0)
    made.hear("a", 7, 0.0)
    made.hear("b", 1, 0.0)
    assert (made.outstanding("a"), made.outstanding("b")) == (7, 1)
    assert made.choose(10.0, 1.0) == "b"
    assert made.choose(10.0, 60.0) == "a"


def test_full_replicas_are_passed_over() -> None:
    made = books("a", "b")
    made.use({"a": 1, "b": 2}, 0.0)
    made.book("one", "a", 1.0, 0.0)
    assert made.choose(1.0, 0.0) == made.choose(None, 0.0) == "b"
    made.hear("b", 2, 0.0)
    assert made.choose(1.0, 0.0) is made.choose(None, 0.0) is None
    made.release("one", 0.0)
    assert made.choose(1.0, 0.0) == "a"
    assert made.choose(1.0, 0.0, among=["b", "stranger"]) is None


def test_drawing_two_never_looks_at_a_third() -> None:
    made = Bookings(1, draws=True)
    made.use(dict.fromkeys(NAMES, 99), 0.0)
    made.book("one", "a", 10.0, 0.0)
    chosen = {made.choose(10.0, 0.0) for _ in range(200)}
    assert chosen == set(NAMES) - {"a"}


def test_a_prefix_is_followed_as_far_as_it_was_seen() -> None:
    seen = Prefixes()
    beginning = "the same rules for everybody. " * 100
    seen.add(beginning + "first", 2)
    seen.add("another", 0)
    tokens = seen.seen_tokens(beginning + "second", 3)
    assert tokens[0] == tokens[1] == 0.0
    assert 0.8 * len(beginning) / 4 < tokens[2] <= len(beginning) / 4
    assert not seen.seen_tokens("x" + beginning, 3).any()
    seen.forget(2)
    assert not seen.seen_tokens(beginning, 3).any()


def test_prefixes_are_bounded() -> None:
    seen = Prefixes(blocks=8)
    for k in range(50):
        seen.add(f"{k:>256}" + "x" * 256, 0)
    assert len(seen._seen) == 8
    assert seen.seen_tokens(f"{49:>256}", 1)[0] == 64.0


def test_affinity_gives_way_to_a_longer_wait() -> None:
    made = books("a", "b")
    made.book("request", "a", 100.0, 0.0)
    for saved_s, chosen in ((0.0, "b"), (100.0, "a")):
        saved = np.zeros(made.rows)
        saved[made.row("a")] = saved_s
        assert made.choose(10.0, 0.0, saved_s=saved) == chosen


class Message:
    def model_dump(self, exclude_unset: bool) -> dict[str, str]:
        return {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("request_", "body"),
    [
        ({"prompt": "Hi", "model": "m", "max_tokens": 5}, {"prompt": "Hi", "max_tokens": 5}),
        (SimpleNamespace(prompt="Hi", n=None), {"prompt": "Hi"}),
        (
            SimpleNamespace(messages=[Message()], prompt=None),
            {"messages": [{"role": "user", "content": "Hello"}]},
        ),
        (SimpleNamespace(audio=b""), {}),
        ("text", {}),
        (None, {}),
    ],
)
def test_bodies(request_: object, body: dict[str, object]) -> None:
    assert body_of(request_) == body


def test_answers_and_text() -> None:
    assert answers_of({"prompt": "Hi"}) == 1
    assert answers_of({"prompt": ["Hi", "Ho"], "n": 3}) == 6
    assert answers_of({"prompt": [1, 2, 3]}) == 1
    assert answers_of({"prompt": [], "n": "many"}) == 1
    assert text_of({"prompt": "Hi"}) == "Hi"
    assert text_of({"messages": [{"content": "Hi"}]}) == repr([{"content": "Hi"}])


def asked(predictor: WorkPredictor, *bodies: dict[str, object]) -> list[float | None]:
    """What it says of bodies, once it has had time to load."""

    async def ask() -> list[float | None]:
        await predictor.work(bodies[0])
        assert predictor._opening is not None
        await predictor._opening
        return [await predictor.work(body) for body in bodies]

    return asyncio.run(ask())


def test_work_is_cut_by_max_tokens_and_counts_every_answer() -> None:
    said = {"vllm_xargs": {"lengthwise_expected_tokens": 300}}
    works = asked(
        WorkPredictor("declared", str(model_path())),
        {"prompt": "Hi", **said},
        {"prompt": "Hi", **said, "max_tokens": 20},
        {"prompt": "Hi", **said, "max_tokens": 20, "ignore_eos": True},
        {"prompt": ["Hi", "Ho"], **said, "n": 2},
        {"prompt": "Hi"},  # nothing is declared
        {"prompt": ["Hi"] * 100_000, **said},  # more than are looked at
        {},
    )
    assert works == [300.0, 20.0, 300.0, 1200.0, None, None, None]


def test_a_predictor_that_cannot_be_loaded_costs_nobody_a_request(
    tmp_path: Path, log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"kind": "lexical"}))
    assert asked(WorkPredictor(str(tmp_path), None), {"prompt": "Hi"}) == [None]
    assert log.text.count("routing without predictions") == 1


class SlowPredictor:
    """Takes its time, and fails of one prompt."""

    name = "slow"

    def predict(self, questions: Sequence[Question]) -> list[Prediction]:
        time.sleep(0.02)
        if any(question.prompt == "bad" for question in questions):
            raise ValueError("a template that nobody foresaw")
        return [Prediction(7.0, 7.0, 7.0, 7.0, 7.0) for _ in questions]


class SlowEstimator(OwnEstimator):
    def _load(self) -> Any:
        return SlowPredictor()


def test_whatever_a_predictor_raises_the_request_goes_on(
    monkeypatch: pytest.MonkeyPatch, log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(bookings, "estimator_of", SlowEstimator)
    works = asked(WorkPredictor("p", None), {"prompt": "Hi"}, {"prompt": "bad"}, {"prompt": "Hi"})
    assert works == [7.0, None, 7.0]
    assert log.text.count("ValueError: a template that nobody foresaw") == 1


def test_a_predictor_that_is_exchanged_answers_those_who_have_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    versions = itertools.count()
    monkeypatch.setattr(bookings, "estimator_of", SlowEstimator)
    monkeypatch.setattr(bookings, "_version", lambda predictor: next(versions))
    monkeypatch.setattr(bookings, "_LOOK_S", 0.0)

    async def ask() -> list[float | None]:
        predictor = WorkPredictor("p", None)
        await predictor.work({"prompt": "first"})
        await predictor._opening
        # The first of these finds a new version, while all of them are asking the old one.
        return await asyncio.gather(*(predictor.work({"prompt": "Hi"}) for _ in range(4)))

    assert asyncio.run(ask()) == [7.0] * 4


def test_ranks_are_told_and_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long requests on one rank, whose answers do not come, leave the other one for short ones."""
    monkeypatch.setenv("LENGTHWISE_RANKS", "2")
    monkeypatch.setenv("LENGTHWISE_RANKS_SLOTS", "1")
    ranks: list[bytes | None] = []
    bodies: list[bytes] = []

    async def server(scope: Any, receive: Any, send: Any) -> None:
        ranks.append(dict(scope["headers"]).get(b"x-data-parallel-rank"))
        bodies.append((await receive())["body"])
        if b"wait" in bodies[-1]:
            await asyncio.Event().wait()

    async def ask(ranks_: Ranks, prompt: str, headers: Any = ()) -> None:
        body = json.dumps({"prompt": prompt, "vllm_xargs": {"lengthwise_expected_tokens": 9}})
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body.encode(), "more_body": False}

        async def send(message: Any) -> None: ...

        await ranks_(scope, receive, send)

    async def talk() -> None:
        made = Ranks(server)
        waits = asyncio.create_task(ask(made, "wait"))
        await asyncio.sleep(0.2)
        for _ in range(3):
            await ask(made, "short")
        await ask(made, "named", [(b"x-data-parallel-rank", b"7")])
        waits.cancel()
        await asyncio.gather(waits, return_exceptions=True)
        assert len(made._books) == 0

    asyncio.run(talk())
    first, *others, named = ranks
    assert others == [b"1" if first == b"0" else b"0"] * 3
    assert named == b"7"
    assert all(json.loads(body)["prompt"] for body in bodies)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("LENGTHWISE_RANKS", "none"),
        ("LENGTHWISE_RANKS_SLOTS", "0"),
        ("LENGTHWISE_RANKS_ORDER", "x"),
    ],
)
def test_ranks_refuse_what_makes_no_sense(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENGTHWISE_RANKS", "2")
    monkeypatch.setenv(name, value)

    async def server(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(InputError, match=name):
        Ranks(server)
