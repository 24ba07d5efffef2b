"""No prompt holds the answer whose length is learnt from it: every way to slip one in is tried."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.workload.conversation import Turns
from lengthwise.workload.dataset import Dataset, load_dataset
from tests.support.slipped_answers import ATTEMPTS, HEADINGS, TEMPLATES, Row, gpt, human

QUESTIONS = [f"What is known about case number {number} of the archive?" for number in range(12)]
SECRETS = [
    f"The keeper of shelf zebra{number} found that all of its papers had been moved to the cellar "
    f"by hand, one box at a time, in the winter of {1900 + number}."
    for number in range(12)
]
SHORT = [f"In cellar zebra{number}, mostly" for number in range(12)]


def words(texts: list[str]) -> list[int]:
    return [len(text.split()) for text in texts]


def said(dataset: Dataset, place: int) -> str:
    """All that a prompt says, the system's words included."""
    chat = None if dataset.chats is None else dataset.chats[place]
    texts = [dataset.prompts[place], *((dataset.tenants or [])[place : place + 1])]
    if chat is not None:
        texts += [message.content for message in chat.messages()]
    if dataset.systems is not None:
        texts.append(dataset.systems[place])
    return "\n".join(texts).casefold()


def write(folder: Path, rows: list[Row]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def assert_no_leak(path: Path, **options: Any) -> None:
    """Refused, or read without any answer in its own prompt."""
    try:
        dataset = load_dataset(path, count_tokens=words, **options)
    except InputError:
        return
    for place, row in enumerate(dataset.rows.tolist()):
        secret = f"zebra{row - 1}"
        if dataset.chats is not None and "once more" in said(dataset, place):
            raise AssertionError("a repeated answer is in its prompt")
        assert secret not in said(dataset, place)


#: what is read, with the answer cut off; everything else is refused, or left out and counted
CUT = [
    "the last message, its length beside it",
    "the last message, the answer beside it",
    "the last message, with a system's prompt",
    "before a last word of the system",
    "twice at the end",
    "in parts",
    "under a role of another name",
    "conversations of LMSYS",
    "conversations of ShareGPT",
    "a request of guidellm",
    "messages as Python writes them",
    "a request as text",
    "a conversation as text",
    "a stored completion",
]
#: a few words may be said twice, and quoted
LONG_ONLY = [
    "a later turn repeats it",
    "in the system's prompt",
    "most of it",
    "in other characters",
    "with its markup gone",
    "as JSON in a text",
    "as what a tool was asked",
]


@pytest.mark.parametrize("name", ATTEMPTS)
def test_an_answer_cannot_be_slipped_in(tmp_path: Path, name: str) -> None:
    rows = [ATTEMPTS[name](*pair) for pair in zip(QUESTIONS, SECRETS, strict=True)]
    assert_no_leak(write(tmp_path, rows))


@pytest.mark.parametrize("name", [name for name in ATTEMPTS if name not in LONG_ONLY])
def test_an_answer_of_a_few_words_cannot_either(tmp_path: Path, name: str) -> None:
    rows = [ATTEMPTS[name](*pair) for pair in zip(QUESTIONS, SHORT, strict=True)]
    assert_no_leak(write(tmp_path, rows))


@pytest.mark.parametrize("template", TEMPLATES + HEADINGS)
def test_a_rendered_chat_ends_where_its_answer_begins(tmp_path: Path, template: str) -> None:
    """With an answer behind it is refused; without, also where earlier turns have theirs, it is
    what a server was asked."""

    def read(rendered: list[str]) -> Dataset:
        rows = [{"prompt": text, "output_tokens": 30} for text in rendered]
        return load_dataset(write(tmp_path, rows))

    pairs = list(zip(QUESTIONS, SECRETS, strict=True))
    with pytest.raises(InputError):
        read([template.format(question, secret) for question, secret in pairs])
    asked, _, _ = template.rpartition("{}")
    assert len(read([asked.format(question) for question in QUESTIONS]).prompts) == 12
    turns = [template.format("Who is there?", "Nobody.") + asked.format(each) for each in QUESTIONS]
    assert len(read(turns).prompts) == 12


@pytest.mark.parametrize("template", TEMPLATES)
def test_single_rendered_chats_are_left_out(tmp_path: Path, template: str) -> None:
    rows = [{"prompt": question, "output_tokens": 30} for question in QUESTIONS]
    rows[4]["prompt"] = template.format(QUESTIONS[4], SECRETS[4])
    dataset = load_dataset(write(tmp_path, rows))
    assert len(dataset.prompts) == 11
    assert sum(dataset.left_out.values()) == 1


@pytest.mark.parametrize(
    "prompt",
    [
        "Question: which of these is a fruit?\nA: a stone\nB: an apple\nAnswer:",
        "Write a tag such as <user> or <model> for me, and say what [/INST] is not.",
        "Be an assistant: reply in JSON.",
        "Translate to French: Answer me at once!",
    ],
)
def test_words_that_only_look_like_it_are_prompts(tmp_path: Path, prompt: str) -> None:
    rows = [{"prompt": f"{prompt} {number}"[: len(prompt)], "tokens": 3} for number in range(5)]
    assert len(load_dataset(write(tmp_path, rows), length_column="tokens").prompts) == 5


@pytest.mark.parametrize("name", CUT)
def test_an_answer_at_the_end_is_cut_off(tmp_path: Path, name: str) -> None:
    rows = [ATTEMPTS[name](*pair) for pair in zip(QUESTIONS, SECRETS, strict=True)]
    dataset = load_dataset(write(tmp_path, rows), count_tokens=words)
    assert dataset.prompts == QUESTIONS
    assert (dataset.lengths > 20).all()
    assert not dataset.rejected
    assert not dataset.left_out


def set_prompt(key: str) -> Callable[[Row, str], None]:
    def change(row: Row, question: str) -> None:
        row[key] = question

    return change


def set_first_message(row: Row, question: str) -> None:
    row["messages"][0]["content"] = question


#: how a row of an attempt is made sound
SOUND: dict[str, Callable[[Row, str], None]] = {
    "in the system's prompt": set_first_message,
    "in the user's own words": set_first_message,
    "one text that holds both": set_prompt("text"),
    "one text that holds both, and only a length": set_prompt("text"),
    "a rendered chat": set_prompt("prompt"),
    "a rendered chat of Llama 2": set_prompt("prompt"),
    "a copied column": set_prompt("prompt"),
    "a copied column, in capitals and with other spaces": set_prompt("prompt"),
    "the input of an instruction": set_prompt("input"),
    "the context of an instruction": set_prompt("context"),
    "what vLLM-LTR generated": set_prompt("prompt"),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_few_among_sound_rows_are_left_out_and_counted(tmp_path: Path, name: str) -> None:
    """Where most rows of a file are sound, single ones are not let through either."""
    rows = [ATTEMPTS[name](*pair) for pair in zip(QUESTIONS, SECRETS, strict=True)]
    for row, question in zip(rows[3:], QUESTIONS[3:], strict=True):
        SOUND[name](row, question)
    path = write(tmp_path, rows)
    dataset = load_dataset(path, count_tokens=words)
    assert dataset.rows.tolist() == list(range(4, 13))
    assert sum(dataset.left_out.values()) == 3
    assert_no_leak(path)


@pytest.mark.parametrize("turns", list(Turns))
def test_an_answer_is_never_behind_its_own_beginning(tmp_path: Path, turns: Turns) -> None:
    """Of a conversation each answer's prompt is all that was said before it, and nothing later."""
    said_in_turn = [human("One?"), gpt("a b c"), human("Two?"), gpt("d e"), human("Three?")]
    said_in_turn += [gpt("f"), human("And?")]
    path = write(tmp_path, [{"conversations": said_in_turn}])
    dataset = load_dataset(path, count_tokens=words, turns=turns)
    assert dataset.chats is not None
    found = [
        ("".join(message.content for message in chat.messages()), length)
        for chat, length in zip(dataset.chats, dataset.lengths.tolist(), strict=True)
        if chat is not None
    ]
    every = [("One?", 3), ("One?a b cTwo?", 2), ("One?a b cTwo?d eThree?", 1)]
    assert found == {Turns.ALL: every, Turns.FIRST: every[:1], Turns.LAST: every[-1:]}[turns]


@pytest.mark.parametrize(
    "name", ["conversations of ShareGPT", "conversations of LMSYS", "a stored completion"]
)
def test_naming_the_column_does_not_open_it(tmp_path: Path, name: str) -> None:
    """Not even with --prompt-column is an answer taken for a prompt."""
    rows = [ATTEMPTS[name](*pair) for pair in zip(QUESTIONS, SECRETS, strict=True)]
    for column in rows[0]:
        path = write(tmp_path, rows)
        assert_no_leak(path, prompt_column=column)


def test_quoted_answers_are_kept_when_asked_for(tmp_path: Path) -> None:
    rows = [{"prompt": f"Say this: {secret}", "completion": secret} for secret in SECRETS]
    path = write(tmp_path, rows)
    with pytest.raises(InputError, match=r"12 of 12 prompts .* --quotes"):
        load_dataset(path, count_tokens=words)
    dataset = load_dataset(path, count_tokens=words, quotes=True)
    assert len(dataset.prompts) == dataset.holding_answers == 12
