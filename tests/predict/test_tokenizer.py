"""Tokenizers: the bytes of each token, the chat template, the fingerprint."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

from lengthwise.errors import InputError
from lengthwise.predict.extract import template_of
from lengthwise.predict.tokenizer import PromptTokenizer, load_tokenizer
from lengthwise.workload.conversation import Chat, Message

TEXTS = ["Write a story about 3 cats.", "naïve café 写一个故事 🙂", "def f(x):\n    return x + 1\n"]
REFERENCE = load_tokenizer("reference")


def text_of(tokenizer: PromptTokenizer, token_ids: list[int]) -> str:
    table = tokenizer.token_bytes()
    return b"".join(table[index] for index in token_ids).decode()


def sentence_piece(chat_template: str | None = None) -> PromptTokenizer:
    """A tokenizer in the manner of Llama 2: "▁" for spaces, bytes for unknown characters."""
    names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    letters = sorted(set("▁Writeastoryabouthmecats.USER:AINT2026Bkind"))
    vocabulary = {name: index for index, name in enumerate([*names, *letters, "▁c", "▁ca", "▁s"])}
    merges = [("▁", "c"), ("▁c", "a"), ("▁", "s")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return PromptTokenizer(
        "sentence-piece",
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            unk_token="<unk>",
            bos_token="<s>",
            eos_token="</s>",
            chat_template=chat_template,
        ),
    )


@settings(deadline=None)
@given(st.text(max_size=80))
def test_byte_level_tokens_give_the_text_back(text: str) -> None:
    assert text_of(REFERENCE, REFERENCE.encode_plain(text)) == text


@pytest.mark.parametrize("text", ["some cats", " a  story é\n🙂", "▁ <0x0A>"])
def test_sentence_piece_names_of_spaces_and_bytes_are_understood(text: str) -> None:
    tokenizer = sentence_piece()
    # The underscore that stands for a space cannot be told from one.
    assert text_of(tokenizer, tokenizer.encode_plain(text)) == text.replace("▁", " ")
    assert {b" ca", b"\n", b"e"} <= set(tokenizer.token_bytes())


def test_special_tokens_have_no_bytes() -> None:
    table = REFERENCE.token_bytes()
    assert table[0] == b""
    chat = REFERENCE.encode_chat(TEXTS[0])
    assert text_of(REFERENCE, chat) == TEXTS[0]
    assert len(chat) > len(REFERENCE.encode_plain(TEXTS[0]))


def test_many_prompts_are_encoded_as_one_by_one() -> None:
    assert REFERENCE.encode_chat_many(TEXTS) == [REFERENCE.encode_chat(text) for text in TEXTS]
    assert REFERENCE.encode_chat_many([]) == []


def test_chat_ids_are_those_of_transformers() -> None:
    backend = PreTrainedTokenizerFast.from_pretrained(_model_path())
    message = [{"role": "user", "content": TEXTS[1]}]
    ids = backend.apply_chat_template(message, add_generation_prompt=True, return_dict=True)
    assert REFERENCE.encode_chat(TEXTS[1]) == ids["input_ids"]


def test_answers_are_counted_without_special_tokens() -> None:
    assert REFERENCE.count_tokens(["", "a"]) == [0, 1]
    assert REFERENCE.count_tokens([]) == []


def test_without_a_chat_template_the_text_is_encoded_as_it_is() -> None:
    tokenizer = sentence_piece()
    assert tokenizer.encode_chat("some cats") == tokenizer.encode_plain("some cats")


def conversation(*roles: str) -> Chat:
    said = [Message(role, f"{number} cats") for number, role in enumerate(roles)]
    return Chat([*said, Message("assistant", "not rendered")], len(said))


def test_a_conversation_has_the_ids_of_transformers() -> None:
    backend = PreTrainedTokenizerFast.from_pretrained(_model_path())
    chat = conversation("system", "user", "assistant", "user")
    messages = [message.for_template() for message in chat.messages()]
    ids = backend.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    assert REFERENCE.encode_conversations([messages]) == [ids["input_ids"]]
    assert REFERENCE.refuses(chat) is None
    (plain,) = sentence_piece().encode_conversations([messages])
    assert plain == sentence_piece().encode_plain("0 cats\n\n1 cats\n\n2 cats\n\n3 cats")


def test_what_a_template_refuses_is_known_before() -> None:
    """As a server would refuse it; once for each order of speakers."""
    tokenizer = sentence_piece(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system, please') }}"
        "{% endif %}{{ messages[0]['content'] }}"
    )
    assert tokenizer.refuses(conversation("user")) is None
    assert tokenizer.refuses(conversation("system", "user")) == "no system, please"
    assert sentence_piece().refuses(conversation("system", "user")) is None


def test_the_anchor_of_a_template_is_its_last_bytes() -> None:
    tokenizer = sentence_piece(
        "<s>It is 2026. Be kind. USER: {{ messages[0]['content'] }} ASSISTANT:"
    )
    template = template_of(tokenizer)
    assert template.before.tobytes() == b". USER: "[-8:]
    assert template.after.tobytes() == b" ASSISTANT:"


def test_fingerprints_tell_vocabularies_apart() -> None:
    assert REFERENCE.fingerprint == load_tokenizer(str(_model_path())).fingerprint
    assert REFERENCE.fingerprint != sentence_piece().fingerprint


@pytest.mark.parametrize("folder", [".", "nowhere"])
def test_a_tokenizer_that_is_not_there_is_one_line(tmp_path: Path, folder: str) -> None:
    with pytest.raises(InputError, match="holds no tokenizer") as raised:
        load_tokenizer(str(tmp_path / folder))
    assert "\n" not in str(raised.value)


def test_ids_come_as_plain_integers() -> None:
    assert all(type(index) is int for index in REFERENCE.encode_chat(TEXTS[0]))
    assert np.asarray(REFERENCE.encode_chat(TEXTS[0])).dtype == np.int64


def _model_path() -> Path:
    from lengthwise.reference import model_path

    return model_path()
