"""What an answer says of its length, read as it passes; and what is asked for it to be said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lengthwise.gateway.bodies import (
    MOST_BRACKETS,
    MOST_COMMAS,
    AnswerUsage,
    StreamUsage,
    Usage,
    WholeUsage,
    asking_for_usage,
    clamped_priority,
    read_body,
)
from lengthwise.hints.question import MOST_ANSWERS, MOST_PROMPTS
from lengthwise.predict.prediction import LORA

# A text that tries to look like what is taken out.
TEXT = 'a,"usage":null and \\",\\"usage\\":null'


def event(values: Any, end: str = "\n\n") -> bytes:
    return f"data: {json.dumps(values, separators=(',', ':'))}{end}".encode()


def stream(tokens: int, end: str = "\n\n", usage: bool = True) -> tuple[bytes, bytes]:
    """A stream as an upstream sends it that was asked for usage, and as one does that was not."""
    with_usage, without = b": a comment" + end.encode(), b": a comment" + end.encode()
    for number in range(tokens):
        last = number + 1 == tokens
        choice = {"delta": {"content": TEXT}, "finish_reason": "length" if last else None}
        with_usage += event({"choices": [choice], "usage": None, "id": 1}, end)
        without += event({"choices": [choice], "id": 1}, end)
    if usage:
        said = {"completion_tokens": tokens, "prompt_tokens": 4}
        with_usage += event({"choices": [], "usage": said}, end)
    done = f"data: [DONE]{end}".encode()
    return with_usage + done, without + done


@given(st.integers(1, 5), st.sampled_from(["\n\n", "\r\n\r\n"]), st.randoms(use_true_random=False))
def test_usage_is_found_and_taken_out_however_the_stream_is_cut(
    tokens: int, end: str, random: Any
) -> None:
    sent, wanted = stream(tokens, end)
    for hide in (True, False):
        reader, passed, rest = StreamUsage(hide), b"", sent
        while rest:
            size = random.randint(1, 40)
            passed += reader.feed(rest[:size])
            rest = rest[size:]
        passed += reader.flush()
        assert passed == (wanted if hide else sent)
        assert reader.found == Usage(tokens, 4, "length")


@pytest.mark.parametrize(
    "data",
    [
        b'data: {no json, "usage": {\n\n',
        event({"usage": {"completion_tokens": "many"}, "choices": [{"finish_reason": "stop"}]}),
        event({"usage": {"completion_tokens": -1}, "choices": [{"finish_reason": "stop"}]}),
        event({"usage": {"completion_tokens": 2**31}, "choices": [{"finish_reason": "stop"}]}),
        event({"usage": {"completion_tokens": 10**30}, "choices": [{"finish_reason": "stop"}]}),
        b'data: {"usage": {}, "choices": 5}\n\n',
        b"data: " + b'[{"usage": {' * 1000 + b"\n\n",
        b"\n\n\n\n",
        b"no end",
    ],
)
def test_what_cannot_be_read_passes_as_it_is(data: bytes) -> None:
    reader = StreamUsage(hide=True)
    assert reader.feed(data) + reader.flush() == data
    assert reader.found is None
    whole = WholeUsage()
    assert whole.feed(data) + whole.flush() == data
    assert whole.found is None


def test_an_event_without_an_end_is_not_kept_for_ever() -> None:
    reader, passed = StreamUsage(hide=True), 0
    for _ in range(64):
        passed += len(reader.feed(b"x" * (1 << 16)))
        assert len(reader._rest) <= 2 << 20
    assert passed + len(reader.flush()) == 64 << 16


def test_a_whole_answer_is_read_unless_it_is_too_long() -> None:
    said = {"choices": [{"finish_reason": "stop"}], "usage": {"completion_tokens": 7}}
    data = json.dumps(said).encode()
    reader = WholeUsage()
    assert reader.feed(data[:9]) + reader.feed(data[9:]) + reader.flush() == data
    assert reader.found == Usage(7, None, "stop")
    long = WholeUsage()
    for _ in range(40):
        long.feed(b" " * (1 << 16))
    long.feed(data)
    long.flush()
    assert long.found is None


@pytest.mark.parametrize("prompt_tokens", [-1, 2**31, 10**30, True, 1.5])
def test_a_prompt_of_no_possible_size_counts_as_not_said(prompt_tokens: Any) -> None:
    said = {"completion_tokens": 7, "prompt_tokens": prompt_tokens}
    reader = WholeUsage()
    reader.feed(json.dumps({"choices": [{"finish_reason": "stop"}], "usage": said}).encode())
    reader.flush()
    assert reader.found == Usage(7, None, "stop")


def test_how_an_answer_is_read_depends_on_its_head() -> None:
    chosen = AnswerUsage(hide=True)
    assert isinstance(chosen({"Content-Type": "text/event-stream; charset=utf-8"}), StreamUsage)
    assert isinstance(chosen({"Content-Type": "application/json"}), WholeUsage)
    assert chosen({"Content-Type": "text/html"}) is None
    assert chosen({"Content-Type": "application/json", "Content-Encoding": "gzip"}) is None


@pytest.mark.parametrize("options", [None, {}, {"include_usage": False, "other": 1}, "absent"])
def test_usage_is_asked_for_and_nothing_else_changes(options: Any) -> None:
    values: dict[str, Any] = {"prompt": "é", "stream": True, "seed": 2**70, "temperature": 1e-30}
    if options != "absent":
        values["stream_options"] = options
    data = b" \n" + json.dumps(values).encode()
    changed = json.loads(asking_for_usage(data, values))
    assert changed.pop("stream_options") == {
        **(options if isinstance(options, dict) else {}),
        "include_usage": True,
    }
    values.pop("stream_options", None)
    assert changed == values


@pytest.mark.parametrize(
    "encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]
)
def test_usage_is_asked_for_however_a_body_is_encoded(encoding: str) -> None:
    values = {"prompt": "a \u00e4 \U0001f600", "stream": True}
    for before in ("", " \n"):
        data = (before + json.dumps(values, ensure_ascii=False)).encode(encoding)
        changed = json.loads(asking_for_usage(data, json.loads(data)))
        assert changed == values | {"stream_options": {"include_usage": True}}


def test_a_body_says_how_many_answers_it_asks_for() -> None:
    def read(**values: Any) -> Any:
        return read_body(json.dumps({"model": "m", **values}).encode())

    one = read(prompt="a", max_tokens=9, stream=True, stream_options={"include_usage": True})
    assert (one.asked.answers, one.asked.single, one.asked.most_tokens) == (1, True, 9)
    assert one.asked.streams
    assert one.asked.wants_usage
    assert one.questions[0].hints[LORA] == "m"
    assert read(prompt=["a", "b"], n=3).asked.answers == 6
    assert read(prompt="a", n=3).asked.single is False
    assert read(messages=[{"role": "user", "content": "a"}]).asked.single
    for odd in ("many", -3, 0, True, None, 1.5):
        assert read(prompt="a", n=odd).asked.answers == 1
    assert read(input="of another API", n=2).asked.answers == 2
    conversation = [{"role": "user", "content": "a"}]
    assert read(messages=[conversation] * 3).asked.answers == 3
    assert read(token_ids=[1], sampling_params={"n": 4}).asked.answers == 4
    assert read(token_ids=[1], sampling_params=[]).asked.answers == 1
    deadline = read(prompt="a", vllm_xargs={"lengthwise_ttft_deadline_ms": "250"})
    assert deadline.asked.deadline_s == 0.25


@given(st.integers(1, 6000), st.sampled_from(["a", [1]]), st.integers(1, 3))
def test_a_small_body_with_many_prompts_makes_no_more_of_them_than_are_predicted(
    count: int, prompt: Any, n: int
) -> None:
    read = read_body(json.dumps({"model": "m", "prompt": [prompt] * count, "n": n}).encode())
    assert read.asked.answers == count * n
    assert read.asked.single == (count == n == 1)
    assert len(read.questions) == (count if count <= MOST_PROMPTS else 0)
    assert len({id(each.hints) for each in read.questions}) <= 1


def test_more_answers_than_anybody_means_are_bounded() -> None:
    for values in ({"n": 10**400}, {"prompt": ["a"] * 5000, "n": 1 << 20}):
        assert read_body(json.dumps(values).encode()).asked.answers == MOST_ANSWERS


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"[" * 100_000,
        b'{"prompt": "\xff"}',
        json.dumps({"prompt": "a", "n": 2, "tools": [{}] * MOST_BRACKETS}).encode(),
        json.dumps({"prompt": [1] * (MOST_COMMAS + 2), "n": 2}).encode(),
    ],
    ids=lambda data: str(data[:20]),
)
def test_a_body_that_cannot_be_read_is_one_answer(data: bytes) -> None:
    body = read_body(data)
    assert (body.asked.answers, body.asked.single, body.values) == (1, False, None)
    assert list(body.questions) == []


@pytest.mark.parametrize(
    ("given_value", "meant"),
    [
        ("3", 3),
        (-2, -2),
        (2**80, 2**31 - 1),
        ("-1e99", -(2**31) + 1),
        ("nan", 0),
        ("x", 0),
        ([], 0),
    ],
)
def test_a_priority_is_a_bounded_number(given_value: Any, meant: int) -> None:
    assert clamped_priority(given_value) == meant
