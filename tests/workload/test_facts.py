"""What a request says beside its prompt: told alike from rows, bodies and vLLM's requests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lengthwise.hints.question import read_body
from lengthwise.predict.extract import extract_features, requests_of, token_text_of
from lengthwise.predict.features import find_features, new_scratch
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.prediction import FACTS, Prompt
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.predict.train import train
from lengthwise.workload.conversation import Facts, facts_of
from lengthwise.workload.dataset import Dataset, load_dataset

REFERENCE = load_tokenizer("reference")
TOOL = {"type": "function", "function": {"name": "sum", "parameters": {"type": "object"}}}


def write(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("body", "facts"),
    [
        ({}, Facts()),
        ({"temperature": 1, "top_p": 1.0, "max_tokens": None}, Facts()),
        ({"temperature": "0.2", "max_completion_tokens": 64}, Facts(0.2, most_tokens=64)),
        ({"max_tokens": 64, "ignore_eos": True}, Facts()),
        ({"response_format": {"type": "json_object"}}, Facts(structured=True)),
        ({"response_format": {"type": "text"}, "top_p": True}, Facts()),
        ({"temperature": "warm", "max_tokens": -5, "top_p": float("nan")}, Facts()),
        ({"max_tokens": 10**400, "temperature": [0.1]}, Facts()),
    ],
)
def test_facts_are_told_from_a_body(body: dict[str, Any], facts: Facts) -> None:
    assert facts_of(body) == facts


def test_what_is_nearly_the_same_has_one_name() -> None:
    assert Facts(0.71, 0.9, 500, 7, structured=True).names() == (
        "temperature 0.7",
        "top_p 0.9",
        "limit 18",
        "attachments 3",
        "structured",
    )
    assert Facts(most_tokens=512).names() == Facts(most_tokens=500).names()
    assert Facts().names() == ()


def test_rows_and_bodies_give_the_same_features(tmp_path: Path) -> None:
    """A predictor learns from a log what the server and the hints' middleware will show it."""
    body = {
        "messages": [
            {
                "role": "user",
                "content": [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {}}],
            }
        ],
        "temperature": 0.3,
        "max_tokens": 100,
        "tools": [TOOL],
    }
    response = {"choices": [{"message": {"content": "x y z"}}], "usage": {"completion_tokens": 3}}
    dataset = load_dataset(write(tmp_path, [{"request": body, "response": response}] * 2))
    (prompt, _) = requests_of(dataset, REFERENCE, slice(0, 2))
    assert prompt.hints[FACTS] == Facts(0.3, 1.0, 100, 1)
    (question,) = read_body(body)
    assert question.hints[FACTS] == prompt.hints[FACTS]
    assert dataset.chats is not None
    assert dataset.chats[0] is not None
    assert dataset.chats[0].tools == question.prompt.tools == (TOOL,)  # type: ignore[union-attr]


def test_tools_are_rendered_as_the_server_renders_them() -> None:
    class Backend:
        chat_template = "x"

        def apply_chat_template(self, messages: Any, tools: Any, **options: Any) -> str:
            return json.dumps([messages, tools])

        def __call__(self, texts: list[str], **options: Any) -> dict[str, list[list[int]]]:
            return {"input_ids": [list(text.encode()) for text in texts]}

    from lengthwise.predict.tokenizer import PromptTokenizer

    tokenizer = PromptTokenizer("made up", Backend())
    said = [{"role": "user", "content": "hi"}]
    with_tools, without = tokenizer.encode_conversations([said, said], [[TOOL], []])
    assert json.loads(bytes(with_tools)) == [said, [TOOL]]
    assert json.loads(bytes(without)) == [said, None]


def answered(tmp_path: Path, limits: list[int], lengths: list[int]) -> Dataset:
    rows = [
        {"prompt": f"What is {number}?", "output_tokens": length, "max_tokens": limit}
        for number, (limit, length) in enumerate(zip(limits, lengths, strict=True))
    ]
    return load_dataset(write(tmp_path, rows))


def test_a_limit_that_is_the_length_is_not_learnt_from(tmp_path: Path) -> None:
    """A replay gives each request the length of its answer: a feature that no server has."""
    lengths = list(range(10, 70))
    assert answered(tmp_path, lengths, lengths).facts is None
    found = answered(tmp_path, [64] * 60, lengths).facts
    assert found is not None
    assert {each.most_tokens for each in found} == {64}


def test_a_predictor_learns_from_what_requests_ask_for(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    warm = random.integers(2, size=200)
    rows = [
        {
            "prompt": f"Say something about {number}.",
            "temperature": 1.0 if each else 0.2,
            "output_tokens": int(random.integers(150, 200) if each else random.integers(10, 60)),
        }
        for number, each in enumerate(warm)
    ]
    dataset = load_dataset(write(tmp_path, rows))
    predictor = train(dataset, REFERENCE, Recipe())
    (ids,) = REFERENCE.encode_chat_many(["Say something about fish."])
    cold = predictor.predict(Prompt(ids, {FACTS: Facts(0.2)}))
    assert cold.expected < 80 < predictor.predict(Prompt(ids, {})).expected
    # A caller cannot pass for the server.
    assert predictor.predict(Prompt(ids, {FACTS: "temperature 0.2"})).expected > 80


def test_a_predictor_that_knows_no_facts_is_not_moved_by_them(tmp_path: Path) -> None:
    """One from before there were any: their buckets are its own, which no other feature has."""
    text = token_text_of(REFERENCE)
    scratch = new_scratch()
    (ids,) = REFERENCE.encode_chat_many(["Why?"])
    with_facts = {FACTS: Facts(0.2, 0.5, 77, 2, structured=True)}
    plain = find_features(ids, text.vocabulary, text.template, scratch)
    before = set(scratch.buckets[:plain].tolist())
    found = find_features(ids, text.vocabulary, text.template, scratch, with_facts)
    added = scratch.buckets[plain:found].tolist()
    assert before == set(scratch.buckets[:plain].tolist())
    assert len(set(added)) == 5
    assert all(bucket & 3 == 3 for bucket in added)
    dataset = load_dataset(
        write(tmp_path, [{"prompt": f"n {n}", "output_tokens": n + 1} for n in range(40)])
    )
    predictor = train(dataset, REFERENCE, Recipe())
    assert predictor.predict(Prompt(ids, with_facts)) == predictor.predict(Prompt(ids, {}))
    assert extract_features(
        dataset, REFERENCE, text.vocabulary, text.template, lambda part: None
    ).buckets.size
