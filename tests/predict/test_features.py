"""Features: those of the text, whatever the tokens; bounded; the same wherever they are found."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lengthwise.predict.extract import extract_features, template_of, vocabulary_of
from lengthwise.predict.features import (
    BUCKETS,
    GROUP_BITS,
    GROUPS,
    WINDOW_TOKENS,
    Template,
    Vocabulary,
    find_features,
    new_scratch,
    read_window,
)
from lengthwise.predict.prediction import LORA, TENANT
from lengthwise.predict.tokenizer import PromptTokenizer, load_tokenizer
from lengthwise.reference import model_path
from lengthwise.workload.dataset import Dataset

BYTES = Vocabulary(np.arange(256, dtype=np.uint8), np.arange(257, dtype=np.int64))
NO_TEMPLATE = Template(np.zeros(0, np.uint8), np.zeros(0, np.uint8))
WORDS, PAIRS, SKIPS, PLACES, OPENINGS, SHAPE, ORIGIN = range(GROUPS)


@pytest.fixture(scope="module")
def tokenizer() -> PromptTokenizer:
    return load_tokenizer("reference")


@pytest.fixture(scope="module")
def instructed() -> PromptTokenizer:
    """A tokenizer whose chat template tells the system from the user."""
    backend = PreTrainedTokenizerFast.from_pretrained(model_path())
    backend.chat_template = (
        "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
        "assistant:"
    )
    return PromptTokenizer("instructed", backend)


def features(
    token_ids: list[int],
    vocabulary: Vocabulary = BYTES,
    template: Template = NO_TEMPLATE,
    hints: Mapping[str, object] = MappingProxyType({}),
) -> set[int]:
    scratch = new_scratch()
    found = find_features(token_ids, vocabulary, template, scratch, hints)
    distinct = set(scratch.buckets[:found].tolist())
    assert len(distinct) == found
    return distinct


def of_text(text: str, group: int | None = None) -> set[int]:
    return {
        bucket
        for bucket in features(list(text.encode()))
        if group is None or bucket >> GROUP_BITS == group
    }


def test_words_are_letters_digits_and_single_other_characters() -> None:
    assert len(of_text("Don't count 12 apples, I don't!", WORDS)) == 7  # don't , ! i 12 …
    assert of_text("apples 12", WORDS) == of_text("12 APPLES", WORDS)
    assert of_text("a1", WORDS) == of_text("a 1", WORDS)


def test_pairs_know_their_order() -> None:
    assert of_text("dog bites man", PAIRS) != of_text("man bites dog", PAIRS)
    assert of_text("dog bites man", WORDS) == of_text("man bites dog", WORDS)


def test_skips_join_words_with_one_between() -> None:
    assert of_text("dog never bites", SKIPS) == of_text("dog always bites", SKIPS)
    assert len(of_text("dog never bites man", SKIPS)) == 2
    assert not of_text("dog bites", SKIPS)


def test_places_count_for_themselves() -> None:
    filler = " word" * 40
    assert of_text("List" + filler, PLACES) != of_text("Word" + filler, PLACES)
    assert of_text(filler + " essay", PLACES) != of_text("essay" + filler, PLACES)


def test_the_first_line_is_told_from_what_follows() -> None:
    alone, followed = of_text("Mend this", PLACES), of_text("Mend this\nhe go", PLACES)
    assert alone & followed
    assert alone - followed
    assert of_text("\n\nMend this\n\n", PLACES) == alone
    assert of_text("Mend this\nhe go", SHAPE) != of_text("Mend this he go", SHAPE)


def test_openings_are_pairs_far_apart_in_the_first_words() -> None:
    assert len(of_text("a b c d", OPENINGS)) == 3
    words = [chr(ord("a") + index) for index in range(26)]
    assert of_text(" ".join(words), OPENINGS) == of_text(" ".join(words[:10]), OPENINGS)


def test_numbers_are_read_with_what_they_count() -> None:
    few, many = of_text("5 words", SHAPE), of_text("500 words", SHAPE)
    assert few - many
    assert many - few
    assert of_text("500 words", SHAPE) & of_text("500 pages", SHAPE)
    assert of_text("500 words", SHAPE) != of_text("500 pages", SHAPE)


def test_characters_of_scripts_without_spaces_are_words() -> None:
    assert len(of_text("写一个故事", WORDS)) == 5
    assert len(of_text("Здравствуй мир", WORDS)) == 2
    assert of_text("写 一", PAIRS) == of_text("写一", PAIRS)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_features_of_a_text_do_not_depend_on_its_tokens(text: str) -> None:
    """One token per byte, or the whole text in pieces of three bytes: the same features."""
    data = text.encode()
    pieces = [data[at : at + 3] for at in range(0, len(data), 3)]
    offsets = np.cumsum([0, *map(len, pieces)]).astype(np.int64)
    vocabulary = Vocabulary(np.frombuffer(data, dtype=np.uint8), offsets)
    whole, split = features(list(data)), features(list(range(len(pieces))), vocabulary)
    assert whole == split


@settings(deadline=None)
@given(st.lists(st.integers(-(2**62), 2**62), max_size=60))
def test_any_token_ids_give_features_in_range(token_ids: list[int]) -> None:
    assert all(0 <= bucket < BUCKETS for bucket in features(token_ids))


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_any_bytes_give_features_in_range(data: bytes) -> None:
    assert all(0 <= bucket < BUCKETS for bucket in features(list(data)))


def test_a_long_prompt_is_read_at_both_ends_only() -> None:
    head, tail = [65] * WINDOW_TOKENS, [66] * WINDOW_TOKENS
    first = head + [67] * 5_000 + tail
    other = head + [68] * 5_000 + tail
    assert features(first) == features(other)
    # The gap joins nothing: no word runs across it.
    assert read_window(first).size == 2 * WINDOW_TOKENS + 1
    assert features(first) != features(head + tail)


def test_the_worst_prompt_fits_in_the_scratch() -> None:
    """Tokens of 64 punctuation marks, each a word of its own, all pairs different."""
    random = np.random.default_rng(0)
    flat = random.integers(0x3A, 0x40, 64 * 1_024).astype(np.uint8)
    flat[::2] = random.integers(0x30, 0x3A, 32 * 1_024)  # and digits, which give most features
    vocabulary = Vocabulary(flat, np.arange(0, flat.size + 1, 64))
    assert len(features(list(range(1_024)), vocabulary)) > 100


def test_the_chat_template_is_left_aside(tokenizer: PromptTokenizer) -> None:
    vocabulary, template = vocabulary_of(tokenizer), template_of(tokenizer)
    prompt = "Tell me a short story about 3 cats."
    chat = features(tokenizer.encode_chat(prompt), vocabulary, template)
    plain = features(tokenizer.encode_plain(prompt), vocabulary, NO_TEMPLATE)
    assert _of_words(chat) == _of_words(plain) == _of_words(of_text(prompt))


def test_of_a_conversation_the_last_turn_is_read(tokenizer: PromptTokenizer) -> None:
    vocabulary, template = vocabulary_of(tokenizer), template_of(tokenizer)
    first, last = tokenizer.encode_chat("What is 2 + 2?"), tokenizer.encode_chat("And 3 + 3?")
    conversation = [*first, *tokenizer.encode_plain("It is 4."), *last]
    found = features(conversation, vocabulary, template)
    assert found == features(last, vocabulary, template)


def encode_chat(tokenizer: PromptTokenizer, system: str, prompt: str) -> list[int]:
    ahead = [{"role": "system", "content": system}] if system else []
    return tokenizer.encode_conversations([[*ahead, {"role": "user", "content": prompt}]])[0]


def test_the_origin_is_who_sends_and_with_what_instructions(instructed: PromptTokenizer) -> None:
    vocabulary, template = vocabulary_of(instructed), template_of(instructed)

    def origin(system: str, prompt: str, **hints: object) -> set[int]:
        token_ids = encode_chat(instructed, system, prompt)
        found = features(token_ids, vocabulary, template, hints)
        return {bucket for bucket in found if bucket >> GROUP_BITS == ORIGIN}

    assert origin("", "Hello") == origin("", "Write a story")
    assert origin("Be brief.", "Hello") == origin("Be brief.", "Write a story")
    assert origin("Be brief.", "Hello") != origin("Go on at length.", "Hello")
    assert len(origin("", "Hello", **{TENANT: "a"})) == 2
    assert len(origin("", "Hello", **{TENANT: "a", LORA: "a"})) == 3
    assert origin("", "Hello", **{TENANT: "a"}) != origin("", "Hello", **{LORA: "a"})
    assert origin("", "Hello", **{TENANT: ""}) == origin("", "Hello")


def test_instructions_are_those_ahead_of_the_first_turn(instructed: PromptTokenizer) -> None:
    vocabulary, template = vocabulary_of(instructed), template_of(instructed)
    first = encode_chat(instructed, "Be brief.", "What is 2 + 2?")
    conversation = [*first, *instructed.encode_plain("4."), *instructed.encode_chat("And 3 + 3?")]
    found = [
        {bucket for bucket in features(ids, vocabulary, template) if bucket >> GROUP_BITS == ORIGIN}
        for ids in (first, conversation)
    ]
    assert found[0] == found[1]


def _of_words(found: set[int]) -> set[int]:
    """Without the origin, which a plain text has not."""
    return {bucket for bucket in found if bucket >> GROUP_BITS != ORIGIN}


def test_training_extracts_what_serving_finds(tokenizer: PromptTokenizer) -> None:
    vocabulary, template = vocabulary_of(tokenizer), template_of(tokenizer)
    prompts = ["Name 2 tools.", "naïve café, 10 €\n" * 9, "écris-moi une histoire", "x" * 9_000]
    systems, tenants = ["", "Be brief.", "", "Be brief."], ["", "a", "b", ""]
    table = Dataset(
        name="t",
        prompts=prompts,
        lengths=np.ones(4, dtype=np.int64),
        samples=None,
        rows=np.arange(4),
        rejected=[],
        systems=systems,
        tenants=tenants,
    )
    rows = extract_features(table, tokenizer, vocabulary, template, lambda part: None)
    for row, prompt in enumerate(prompts):
        trained = rows.buckets[rows.starts[row] : rows.starts[row + 1]].tolist()
        token_ids = encode_chat(tokenizer, systems[row], prompt)
        served = features(token_ids, vocabulary, template, {TENANT: tenants[row]})
        assert set(trained) == served
