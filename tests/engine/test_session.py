"""Rounds on a real server: the right ids, the right lengths, policies switched while it runs."""

from __future__ import annotations

import json
import urllib.request
from itertools import count

import numpy as np
import pytest

from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.session import Observed, Session
from lengthwise.compare.specs import Offer
from lengthwise.errors import LengthwiseError
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.settings import Settings, parse_spec

pytestmark = pytest.mark.engine

NAMES = count()
GREEDY = "srpt:preemption=greedy"
SLOTS = 16


def requests(number: int, seed: int = 0) -> list[ReplayRequest]:
    """Answers long enough that slots are still taken when the last of a burst arrives."""
    random = np.random.default_rng(seed)
    lengths = np.clip(random.lognormal(4.5, 0.8, number), 40, 500).astype(int)
    tokenizer = load_tokenizer("reference")
    prompts = tokenizer.encode_chat_many([f"Tell me about {index} cats." for index in lengths])
    return [
        ReplayRequest(index, prompt, int(length))
        for index, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]


def burst(session: Session, policy: str, work: list[ReplayRequest], **options: int) -> Observed:
    settings = parse_spec(policy, Settings(predictor="prompt-length"))
    return session.run_round(
        f"test-{next(NAMES)}", settings, work, Offer.at_once(len(work)), **options
    )


def test_the_chat_endpoint_sees_the_ids_that_predictors_were_trained_on(session: Session) -> None:
    prompt = "Name 3 cities. Ünïcode, too: 你好 🙂"
    body = {
        "model": session.model,
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 1,
        "return_token_ids": True,
    }
    request = urllib.request.Request(
        f"{session.url}/v1/chat/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=60) as response:
        answer = json.load(response)
    assert answer["prompt_token_ids"] == load_tokenizer("reference").encode_chat(prompt)


@pytest.mark.parametrize(
    "policy",
    [
        "srpt",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("fcfs", "oracle", GREEDY)),
    ],
)
def test_every_request_gets_exactly_its_length(session: Session, policy: str) -> None:
    work = requests(3 * SLOTS)
    observed = burst(session, policy, work)
    answers = observed.replay.answers
    assert [answer.error for answer in answers] == [None] * len(work)
    assert [answer.output_tokens for answer in answers] == [each.output_tokens for each in work]
    assert [answer.prompt_tokens for answer in answers] == [len(each.prompt_ids) for each in work]
    assert set(observed.engine.requests) == {each.number for each in work}
    assert observed.counters["finished"] == len(work)
    # Whether all slots are ever taken is a matter of how fast this machine sends.
    assert SLOTS // 2 < observed.engine.steps["running"].max() <= SLOTS
    assert (observed.engine.capacity() or 0) > 0


def test_only_oracles_are_told_the_truth(session: Session) -> None:
    work = requests(8)
    known = burst(session, "oracle", work).engine.requests
    assert [known[each.number]["expected_tokens"] for each in work] == [
        each.output_tokens for each in work
    ]
    guessed = burst(session, "srpt", work).engine.requests
    assert [guessed[each.number]["expected_tokens"] for each in work] == [
        len(each.prompt_ids) for each in work
    ]


def test_an_oracle_lets_short_answers_overtake(session: Session) -> None:
    work = sorted(requests(4 * SLOTS, seed=1), key=lambda each: -(each.output_tokens or 0))
    in_order = burst(session, "fcfs", work)
    by_length = burst(session, "oracle", work)
    assert sum(int(str(each["overtaken"])) for each in in_order.engine.requests.values()) == 0
    assert sum(int(str(each["overtaken"])) for each in by_length.engine.requests.values()) > 0


def test_an_open_length_ends_where_the_model_ends_it(session: Session) -> None:
    open_ended = [ReplayRequest(each.number, each.prompt_ids, None) for each in requests(8)]
    answers = burst(session, "fcfs", open_ended, max_tokens=600).replay.answers
    assert {answer.finish_reason for answer in answers} <= {"stop", "length"}
    assert "stop" in {answer.finish_reason for answer in answers}
    assert len({answer.output_tokens for answer in answers}) > 1


def test_what_the_server_refuses_is_an_error_of_that_request_alone(session: Session) -> None:
    too_long = ReplayRequest(99, [5] * session.max_model_len, 5)
    answers = burst(session, "fcfs", [*requests(2), too_long]).replay.answers
    assert [answer.error is None for answer in answers] == [True, True, False]
    assert (answers[2].error or "").startswith("HTTP 400: ")


def test_settings_that_the_scheduler_refuses_leave_it_serving(session: Session) -> None:
    broken = Settings(policy="srpt", predictor="/no/such/folder")
    with pytest.raises(LengthwiseError, match=r"the scheduler refused the settings: .*folder"):
        session.run_round("refused", broken, requests(1), Offer.at_once(1))
    assert burst(session, "srpt", requests(2)).counters["finished"] == 2


def test_a_closed_loop_never_has_more_requests_than_clients(session: Session) -> None:
    observed = session.run_round("closed", Settings(), requests(12), Offer(clients=3))
    assert observed.engine.steps["running"].max() <= 3
    assert [answer.error for answer in observed.replay.answers] == [None] * 12
