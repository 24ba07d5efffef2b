"""The built-in reference model: its files, its tokenizer, its prompts, and the corpus behind it."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from tokenizers import Tokenizer

from lengthwise.errors import InputError
from lengthwise.reference import SPECIAL_TOKENS, model_path
from lengthwise.reference.corpus import WRITERS, answer, exchanges
from lengthwise.reference.prompts import FAMILIES, generate
from scripts.reference_model.tokenizer import CHAT_TEMPLATE, VOCABULARY
from scripts.reference_model.train import configuration, recorded_exchanges

MODEL = model_path()
FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(MODEL / "tokenizer.json"))


def test_the_folder_is_complete_and_small() -> None:
    assert all((MODEL / name).is_file() for name in FILES)
    assert sum(path.stat().st_size for path in MODEL.iterdir()) < 4_000_000


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, lengthwise.reference.prompts, lengthwise.reference.corpus, "
        "scripts.reference_model.train, scripts.reference_model.evaluate; "
        "print([m for m in ('torch', 'transformers', 'vllm') if m in sys.modules])"
    )
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=root)
    assert printed.stdout.strip() == "[]", printed.stderr


def test_the_models_configuration_is_that_of_the_script() -> None:
    assert json.loads((MODEL / "config.json").read_text(encoding="utf-8")) == configuration()
    other = configuration(width=192, layers=8)
    assert other["num_attention_heads"] * other["head_dim"] == other["hidden_size"] == 192
    assert other["num_attention_heads"] % other["num_key_value_heads"] == 0
    with pytest.raises(InputError, match="multiple of 64"):
        configuration(width=100)


def test_the_weights_are_finite_bfloat16_and_as_many_as_the_card_says() -> None:
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    content = (MODEL / "model.safetensors").read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    del header["__metadata__"]
    assert {entry["dtype"] for entry in header.values()} == {"BF16"}
    embedding = header["model.embed_tokens.weight"]
    assert embedding["shape"] == [config["vocab_size"], config["hidden_size"]]
    values = np.frombuffer(content, dtype="<u2", offset=8 + header_bytes)
    assert np.all(values & 0x7F80 != 0x7F80)  # an exponent of ones is NaN or infinite
    assert np.unique(values).size > 1000
    assert f"{values.size:,} parameters" in (MODEL / "README.md").read_text(encoding="utf-8")


def test_the_configuration_agrees_with_the_tokenizer(tokenizer: Tokenizer) -> None:
    config = json.loads((MODEL / "config.json").read_text(encoding="utf-8"))
    generation = json.loads((MODEL / "generation_config.json").read_text(encoding="utf-8"))
    assert config["vocab_size"] == VOCABULARY >= tokenizer.get_vocab_size()
    assert config["max_position_embeddings"] >= 2048
    ids = [tokenizer.token_to_id(token) for token in SPECIAL_TOKENS]
    assert ids == list(range(len(SPECIAL_TOKENS)))
    end = tokenizer.token_to_id("<|end|>")
    assert config["eos_token_id"] == generation["eos_token_id"] == end
    assert generation["temperature"] == 0.8


@given(st.text(max_size=200))
def test_any_text_survives_the_tokenizer(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text
    assert all(0 <= i < VOCABULARY for i in ids)


def test_numbers_are_the_same_tokens_in_a_plan_and_in_its_parts(tokenizer: Tokenizer) -> None:
    plan = tokenizer.encode("Give me 11 steps").tokens
    part = tokenizer.encode("\n11. Wait").tokens
    assert "11" in plan
    assert "11" in part


def test_the_chat_template_renders_turns_and_opens_the_answer(tokenizer: Tokenizer) -> None:
    jinja2 = pytest.importorskip("jinja2")
    settings = json.loads((MODEL / "tokenizer_config.json").read_text(encoding="utf-8"))
    template = (MODEL / "chat_template.jinja").read_text(encoding="utf-8")
    assert settings["chat_template"] == template == CHAT_TEMPLATE
    turns = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "Hello!"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Grüß dich 你好"},
    ]
    text = jinja2.Template(template).render(messages=turns, add_generation_prompt=True)
    assert text == (
        "<|user|>Be kind.<|user|>Hello!<|assistant|>Hello!<|end|>"
        "<|user|>Grüß dich 你好<|assistant|>"
    )
    specials = [i for i in tokenizer.encode(text).ids if i < len(SPECIAL_TOKENS)]
    assert specials == [2, 2, 3, 1, 2, 3]


def test_prompts_are_the_same_for_a_seed_and_distinct() -> None:
    prompts = generate(3000, seed=7)
    assert prompts == generate(3000, seed=7)
    assert len({prompt.text for prompt in prompts}) == 3000
    assert {prompt.family for prompt in prompts} == set(FAMILIES) == set(WRITERS)
    other = {prompt.text for prompt in generate(3000, seed=8)}
    assert len(other & {prompt.text for prompt in prompts}) < 3000 / 2


def test_a_longer_list_of_prompts_starts_with_the_shorter_one() -> None:
    assert generate(50, seed=3) == generate(80, seed=3)[:50]


def test_a_negative_number_of_prompts_is_refused() -> None:
    with pytest.raises(InputError, match="give zero or more"):
        generate(-1, seed=0)


def test_no_prompt_leaves_a_slot_unfilled_and_no_answer_is_empty() -> None:
    for exchange in exchanges(2000, seed=1):
        assert not re.search(r"[{}]", exchange.prompt.text + exchange.answer)
        assert exchange.answer.strip() == exchange.answer != ""


def test_answers_keep_the_number_of_parts_that_was_asked_for() -> None:
    rng = random.Random(0)
    asked = [prompt for prompt in generate(1500, seed=2) if prompt.parts]
    assert asked
    for prompt in asked:
        assert re.findall(r"^(\d+)\. ", answer(prompt, rng), re.MULTILINE)[-1] == str(prompt.parts)


def test_answer_lengths_depend_on_the_prompt_and_on_chance(tokenizer: Tokenizer) -> None:
    rng = random.Random(0)
    prompts = generate(800, seed=4)
    first, second = (
        np.array([len(tokenizer.encode(answer(prompt, rng)).ids) + 1 for prompt in prompts])
        for _ in range(2)
    )
    assert first.min() <= 3
    assert first.max() >= 100 * first.min()
    assert first.var() / first.mean() ** 2 > 1
    assert 0.5 < kendalltau(first, second).statistic < 0.75
    prompt_lengths = [len(tokenizer.encode(prompt.text).ids) for prompt in prompts]
    assert abs(kendalltau(prompt_lengths, first).statistic) < 0.3


def test_a_model_can_be_trained_on_recorded_answers(tmp_path: Path) -> None:
    table = tmp_path / "answers.jsonl"
    rows = [
        {"prompt": "Name a colour.", "response": "Blue."},
        {"prompt": "", "response": "no prompt"},
        {"prompt": "Say nothing.", "response": None},
        {"prompt": "Count.", "response": "1, 2, 3"},
    ]
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = recorded_exchanges(table)
    assert [(each.prompt.text, each.answer) for each in found] == [
        ("Name a colour.", "Blue."),
        ("Count.", "1, 2, 3"),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "Hi", "length": 3}, "none of the columns response, answer"),
        ({"greeting": "Hi", "answer": "3"}, "none of the columns prompt"),
        ({"prompt": "Hi", "answer": ""}, "no row with a prompt and an answer"),
    ],
)
def test_a_table_without_answers_is_refused(
    tmp_path: Path, row: dict[str, object], message: str
) -> None:
    table = tmp_path / "answers.jsonl"
    table.write_text(json.dumps(row) + "\n")
    with pytest.raises(InputError, match=message):
        recorded_exchanges(table)
