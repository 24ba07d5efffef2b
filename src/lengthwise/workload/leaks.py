"""Prompts that hold their own answers, from which a predictor would learn to read, not to predict.

Readers cut a prompt where its answer begins. What is looked for here is what no reader can know: an
answer that was copied into a column, or into a message, of the prompt. An answer of 20 tokens or
more anywhere in its prompt is one, and so is a shorter one at the end of the prompt or of a
message. Tasks of quoting have such rows, too, so that a reader of the report may want them kept.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections.abc import Iterator
from typing import Final, NamedTuple

from lengthwise.workload.prompt_layouts.layout import Exchange

LEAK_TOKENS: Final = 20  #: an answer of so many tokens is not in its prompt by chance

# Of text, without a tokenizer: 20 tokens are hardly ever fewer words or characters than this. A
# character of a script without spaces counts as two, being a token or so.
_WORDS: Final = 10
_CHARACTERS: Final = 40
_WORDS_AT_END: Final = 3  # of an answer that ends a prompt: fewer are no sign
_CHARACTERS_AT_END: Final = 12  # likewise, in such a script
_PART: Final = 0.9  # of an answer, from its beginning or its end, that is as good as all of it

_WIDE: Final = re.compile("[\u2e80-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]")
_NOT_WORDS: Final = re.compile(r"[\W_]+")
_UNSEEN: Final = re.compile("[\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]")
_ESCAPES: Final = re.compile(r"\\+[nrt]")  # of JSON, in a text


class Leak(NamedTuple):
    """What a prompt says of its own answer."""

    holds: bool  #: it has the answer in it, or most of it, long enough to be no chance
    ends: bool  #: it, or a message of it, ends with the answer, however short


def find_leak(exchange: Exchange) -> Leak:
    """Look for a prompt's own answer, and for other answers to it, in all that is asked."""
    own = _plain(exchange.answer or "")
    wanted = [own, *map(_plain, exchange.other_answers)]
    wanted = [answer for answer in wanted if answer]
    holds = ends = False
    for text in _texts(exchange) if wanted else ():
        said = _plain(text)
        holds = holds or any(_is_in(answer, said) for answer in wanted)
        ends = ends or (bool(own) and said.endswith(own))
    return Leak(holds, holds or ends)


def _is_in(answer: str, said: str) -> bool:
    if len(said) < _PART * len(answer):
        return False
    if any(part in said for part in _telling_parts(answer)):
        return True
    wide = len(_WIDE.findall(answer))
    no_chance = answer.count(" ") + 1 >= _WORDS_AT_END or 2 * wide >= _CHARACTERS_AT_END
    return no_chance and said.endswith(answer)


def _telling_parts(answer: str) -> list[str]:
    """What of an answer is not in its prompt by chance; nothing where the answer is short."""
    if not _is_long(answer):
        return []
    size = round(_PART * len(answer))
    parts = [part for part in (answer[:size], answer[-size:]) if _is_long(part)]
    return parts or [answer]


def _is_long(text: str) -> bool:
    return (
        len(text) + len(_WIDE.findall(text[:_CHARACTERS])) >= _CHARACTERS
        or text.count(" ") + 1 >= _WORDS
    )


def _texts(exchange: Exchange) -> Iterator[str]:
    yield from exchange.beside
    if exchange.chat is None:
        yield exchange.prompt
        return
    for message in exchange.chat.messages():
        yield message.content
        for call in message.calls:
            yield json.dumps(call["function"]["arguments"], ensure_ascii=False)


def _plain(text: str) -> str:
    """The words of a text alone, however they are written: spaces, quotes, markup, escapes."""
    if "&" in text:
        text = html.unescape(text)
    if "\\" in text:
        text = _ESCAPES.sub(" ", text)
    if not text.isascii():
        text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return _NOT_WORDS.sub(" ", text.casefold()).strip()
