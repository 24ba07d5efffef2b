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

QUESTIONS = [f"What is known about case number {number} of the archive?" for number in range(12)]
SECRETS = [
    f"The keeper of shelf zebra{number} found that all of its papers had been moved to the cellar "
    f"by hand, one box at a time, in the winter of {1900 + number}."
    for number in range(12)
]
SHORT = [f"In cellar zebra{number}, mostly" for number in range(12)]

Row = dict[str, Any]
Made = Callable[[str, str], Row]


def user(content: Any) -> Row:
    return {"role": "user", "content": content}


def assistant(content: Any) -> Row:
    return {"role": "assistant", "content": content}


def human(value: str) -> Row:
    return {"from": "human", "value": value}


def gpt(value: str) -> Row:
    return {"from": "gpt", "value": value}


ATTEMPTS: dict[str, Made] = {
    "the last message, its length beside it": lambda q, a: {
        "messages": [user(q), assistant(a)],
        "output_tokens": 30,
    },
    "the last message, the answer beside it": lambda q, a: {
        "messages": [user(q), assistant(a)],
        "response": a,
    },
    "the last message, with a system's prompt": lambda q, a: {
        "messages": [{"role": "system", "content": "Be brief"}, user(q), assistant(a)],
        "completion_tokens": 30,
    },
    "before a last word of the system": lambda q, a: {
        "messages": [user(q), assistant(a), {"role": "system", "content": "Done."}],
        "output_tokens": 30,
    },
    "twice at the end": lambda q, a: {
        "messages": [user(q), assistant(a), assistant(a)],
        "output_tokens": 30,
    },
    "in parts": lambda q, a: {
        "messages": [user(q), assistant([{"type": "text", "text": a}])],
        "output_tokens": 30,
    },
    "under a role of another name": lambda q, a: {
        "messages": [user(q), {"role": "model", "content": a}],
        "output_tokens": 30,
    },
    "under a role that nobody knows": lambda q, a: {
        "messages": [user(q), {"role": "oracle", "content": a}],
        "output_tokens": 30,
    },
    "in the system's prompt": lambda q, a: {
        "messages": [{"role": "system", "content": f"Context: {a} Use it."}, user(q), assistant(a)]
    },
    "in the user's own words": lambda q, a: {"messages": [user(f"{q}\n{a}"), assistant(a)]},
    "as a tool's output": lambda q, a: {
        "messages": [
            user(q),
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            {"role": "tool", "content": a},
            assistant(a),
        ]
    },
    "conversations of LMSYS": lambda q, a: {
        "conversation_id": q,
        "conversation": [user(q), assistant(a)],
        "output_tokens": 30,
    },
    "conversations of ShareGPT": lambda q, a: {"conversations": [human(q), gpt(a)]},
    "a later turn repeats it": lambda q, a: {
        "conversations": [human(q), gpt(a), human("Once more, please."), gpt(a)]
    },
    "a log that ends with another answer": lambda q, a: {
        "messages": [user(q), assistant(a)],
        "response": "Something that was said in another place, and is not in the conversation.",
    },
    "one text that holds both": lambda q, a: {"text": f"{q}\n{a}", "response": a},
    "one text that holds both, and only a length": lambda q, a: {
        "text": f"### Human: {q}\n### Assistant: {a}",
        "output_tokens": 30,
    },
    "one prompt that holds both under headings": lambda q, a: {
        "prompt": f"### Instruction:\n{q}\n\n### Response:\n{a}",
        "output_tokens": 30,
    },
    "a rendered chat": lambda q, a: {
        "prompt": f"<|im_start|>user\n{q}<|im_end|>\n<|im_start|>assistant\n{a}<|im_end|>",
        "output_tokens": 30,
    },
    "a rendered chat of Llama 2": lambda q, a: {
        "prompt": f"<s>[INST] {q} [/INST] {a} </s>",
        "response_tokens": 30,
    },
    "a copied column": lambda q, a: {"prompt": a, "completion": a},
    "a copied column, in capitals and with other spaces": lambda q, a: {
        "prompt": f"{q}\n\n{a.upper().replace(' ', '  ')}",
        "completion": a,
    },
    "the input of an instruction": lambda q, a: {"instruction": q, "input": a, "output": a},
    "the context of an instruction": lambda q, a: {
        "instruction": q,
        "context": f"From the files: {a}",
        "response": a,
    },
    "what vLLM-LTR generated": lambda q, a: {"prompt": f"{q}\n{a}", "generated": a},
    "a request of guidellm": lambda q, a: {
        "request_args": json.dumps({"body": {"messages": [user(q), assistant(a)]}}),
        "output": a,
        "output_metrics": {"text_tokens": 30},
    },
    "a sample of lm-eval": lambda q, a: {
        "arguments": {"gen_args_0": {"arg_0": f"Question: {q}\nAnswer: {a}", "arg_1": {}}},
        "resps": [[a]],
    },
    "a column that is put ahead": lambda q, a: {"system": a, "prompt": q, "response": a},
    "a hint that is a feature": lambda q, a: {"tenant": a, "prompt": q, "response": a},
    "messages as Python writes them": lambda q, a: {
        "prompt": str([user(q), assistant(a)]),
        "output_tokens": 30,
    },
    "messages as NumPy writes them": lambda q, a: {
        "prompt": str([user(q), assistant(a)]).replace("}, {", "}\n {"),
        "output_tokens": 30,
    },
    "a request as text": lambda q, a: {
        "prompt": json.dumps({"model": "m", "messages": [user(q), assistant(a)]}),
        "output_tokens": 30,
    },
    "a chat in Vicuna's one line": lambda q, a: {
        "prompt": f"A chat with an assistant. USER: {q} ASSISTANT: {a}</s>",
        "output_tokens": 30,
    },
    "most of it": lambda q, a: {
        "prompt": f"{q} {' '.join(a.split()[:-1])}, is it not?",
        "response": a,
    },
    "in other characters": lambda q, a: {
        "prompt": f"{q} " + a.replace(" ", " \u200b").replace("fi", "\ufb01") + " And?",
        "response": a,
    },
    "with its markup gone": lambda q, a: {
        "prompt": f"{q} {a} And?",
        "response": a.replace("cellar", "**cellar**").replace("of", "&quot;of&quot;"),
    },
    "as JSON in a text": lambda q, a: {
        "prompt": json.dumps({"question": q, "context": f"{a}\n{a} And?"}),
        "response": f"{a}\n{a}",
    },
    "in a script without spaces": lambda q, a: {
        "prompt": f"{q} zebra 斑马的管理员发现所有的文件都被人搬到了地下室里。你看？",
        "response": "斑马的管理员发现所有的文件都被人搬到了地下室里",
    },
    "as what a tool was asked": lambda q, a: {
        "messages": [
            user(q),
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "1", "function": {"name": "say", "arguments": {"text": a}}}],
            },
            {"role": "tool", "content": "said", "tool_call_id": "1"},
        ],
        "response": a,
    },
    "in a text, of which only the answer's length is known": lambda q, a: {
        "text": f"{q}\n{a}",
        "output_tokens": 30 if len(a) > 80 else 5,
    },
    "a conversation as text": lambda q, a: {
        "prompt": json.dumps({"conversation": [user(q), assistant(a)]}),
        "output_tokens": 30,
    },
    "a row of LiteLLM": lambda q, a: {
        "startTime": "2026-11-01T10:00:00Z",
        "endTime": "2026-11-01T10:00:01Z",
        "prompt_tokens": 5,
        "completion_tokens": 30,
        "messages": [user(f"{q} {a}")],
        "response": {"choices": [{"message": {"content": a}}]},
    },
    "a stored completion": lambda q, a: {
        "request": {"messages": [user(q), assistant(a)]},
        "response": {"choices": [{"message": {"content": a}}], "usage": {"completion_tokens": 30}},
    },
}


#: chats as templates render them, `{}` for the question and for the answer
TEMPLATES = [
    "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n{}<end_of_turn>",
    "<|im_start|>user<|im_sep|>{}<|im_end|><|im_start|>assistant<|im_sep|>{}<|im_end|>",
    "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n{}<|im_end|>",
    "<|user|>\n{}<|end|>\n<|assistant|>\n{}<|end|>",
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n{}<|eot_id|>",
    "<|header_start|>user<|header_end|>\n\n{}<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n{}<|eot|>",
    "<|start|>user<|message|>{}<|end|><|start|>assistant<|channel|>final<|message|>{}<|return|>",
    "<|start_of_role|>user<|end_of_role|>{}<|end_of_text|>\n"
    "<|start_of_role|>assistant<|end_of_role|>{}<|end_of_text|>",
    "<|START_OF_TURN_TOKEN|><|USER_TOKEN|>{}<|END_OF_TURN_TOKEN|>"
    "<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>{}<|END_OF_TURN_TOKEN|>",
    "<｜begin▁of▁sentence｜><｜User｜>{}<｜Assistant｜>{}<｜end▁of▁sentence｜>",
    "<|im_user|>user<|im_middle|>{}<|im_end|><|im_assistant|>assistant<|im_middle|>{}<|im_end|>",
    "<extra_id_1>User\n{}\n<extra_id_1>Assistant\n{}\n",
    "]~b]user\n{}[e~[\n]~b]ai\n{}[e~[",
    "<seed:bos>user\n{}<seed:eos><seed:bos>assistant\n{}<seed:eos>",
    "[|user|]{}\n[|assistant|]{}[|endofturn|]",
    "<s>[INST] {} [/INST] {} </s>",
    "A chat with an assistant. USER: {} ASSISTANT: {}</s>",
    "<user>{}</user><assistant>{}</assistant>",
]
#: chats under headings, which may be a person's own words: they are refused where most rows are so
HEADINGS = [
    "\n\nHuman: {}\n\nAssistant: {}",
    "Human: {} Assistant: {}",
    "### Human: {}### Assistant: {}",
    "GPT4 Correct User: {}<|end_of_turn|>GPT4 Correct Assistant: {}<|end_of_turn|>",
    "[Round 1]\n\n问：{}\n\n答：{}",
    "Q: {}\nA: {}",
    "Input: {}\nOutput: {}",
    "## Prompt\n{}\n## Completion\n{}",
    "**User:** {}\n\n**Assistant:** {}",
    "Question: {} Answer: {}",
]


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
