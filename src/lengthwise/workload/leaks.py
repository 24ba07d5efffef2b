"""Prompts that hold their own answers, from which a predictor would learn to read, not to predict.

Readers cut a prompt where its answer begins. What is looked for here is what no reader can know: an
answer that was copied into a column, or into a message, of the prompt. An answer of 20 tokens or
more anywhere in its prompt is one, and so is a shorter one at the end of the prompt or of a
message. Tasks of quoting have such rows, too, so that a reader of the report may want them kept.

Chats that were rendered to one text may go on after their last answer has begun. Templates differ
in what they write around the speakers, not in how it looks: tokens that hardly occur in any other
text (`<|im_start|>assistant`, `[/INST]`, `<｜Assistant｜>`), or headings such as `Assistant:` and
`### Response:`. The first are proof of a rendered chat; the second are a sign.
"""

from __future__ import annotations

import html
import json
import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from typing import Final, NamedTuple

from lengthwise.workload.prompt_layouts.layout import Exchange

# An answer of 20 tokens is not in its prompt by chance, and hardly ever is one of 20 tokens shorter
# than this. A character of a script without spaces counts as two, being a token or so.
_WORDS: Final = 10
_LEAK_CHARACTERS: Final = 40
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
        len(text) + len(_WIDE.findall(text[:_LEAK_CHARACTERS])) >= _LEAK_CHARACTERS
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


@lru_cache(maxsize=256)  # every answer of a conversation is looked for in the turns before it
def _plain(text: str) -> str:
    """The words of a text alone, however they are written: spaces, quotes, markup, escapes."""
    if "&" in text:
        text = html.unescape(text)
    if "\\" in text:
        text = _ESCAPES.sub(" ", text)
    if not text.isascii():
        text = _UNSEEN.sub("", unicodedata.normalize("NFKC", text))
    return _NOT_WORDS.sub(" ", text.casefold()).strip()


_ASSISTANT: Final = r"(?:assistant|chatbot|model|bot|ai|gpt)"
_OTHERS: Final = r"(?:user|human|prompter|system|developer|tool|observation)"
#: what stands right ahead of a speaker's name: the end of a special token, or one of these
_OPENING: Final = r"(?:[|｜]>|<start_of_turn>|<extra_id_1>|<seed:bos>|\]~b\])\s*"


def _speaker(names: str) -> str:
    """Where one of some speakers begins, by special tokens."""
    word = r"[^<>\[\]|｜\n]{0,40}"
    inside = rf"[<\[][|｜](?:{word}[_ ])?{names}(?:[_ ]{word})?[|｜][>\]](?:{names}\b)?"
    behind = rf"{_OPENING}{names}\b"
    tags = rf"</\w+>\s*<{names}>"
    return rf"(?:{inside}|{behind}|{tags})"


_ANSWERS: Final = re.compile(rf"(?i:{_speaker(_ASSISTANT)}|\[/INST\]|<reserved_107>)|\bASSISTANT:")
_TURNS: Final = re.compile(rf"(?i:{_speaker(_OTHERS)}|\[INST\]|<reserved_106>)|\bUSER:")
#: what anybody may write: it begins an answer only where somebody has asked before
_NEEDS_A_TURN: Final = ("ASSISTANT:", "[/INST]")
#: what templates write behind a speaker's name and ahead of its words, or behind them
_EMPTY: Final = re.compile(
    r"<[|｜]channel[|｜]>\w*|<[^<>\n]{1,40}>|[<\[][|｜][^<>\n]{1,40}[|｜][>\]]|\[e~\[|\s|:"
)

_ANSWER: Final = r"(?:assistant|response|answer|gpt|bot|ai|回答|答|助手)"
_QUESTION: Final = r"(?:user|human|instruction|question|prompt|input|q|问|問|用户)"


def _heading(names: str) -> str:
    """A heading at the beginning of a line."""
    return rf"(?:^|\n)[ \t#*]*{names}[*]*[ \t]*[:：]|(?:^|\n)[ \t]*#+[ \t]*{names}[ \t]*\n"


class _Pair(NamedTuple):
    """What heads an answer, and what heads a question."""

    answer: re.Pattern[str]
    question: re.Pattern[str]
    both: bool  #: whether the first is a heading only where there is one of the second before it


_PAIRS: Final = (
    _Pair(re.compile(_heading(_ANSWER), re.I), re.compile(_heading(_QUESTION), re.I), both=False),
    _Pair(
        re.compile(_heading("(?:output|completion)"), re.I),
        re.compile(_heading(_QUESTION), re.I),
        both=True,
    ),
    _Pair(re.compile(_heading("A")), re.compile(_heading("Q")), both=True),
    # Within a line, of speakers and in capitals alone.
    _Pair(
        re.compile(r"\b(?:Assistant|ASSISTANT|Answer)\s*:"),
        re.compile(r"\b(?:User|USER|Human|HUMAN|Question)\s*:"),
        both=True,
    ),
)


def is_rendered_with_an_answer(text: str) -> bool:
    """Whether a text is a rendered chat whose last turn is an answer that has words."""
    last = _last(_ANSWERS, text)
    if last is None:
        return False
    if last.group() in _NEEDS_A_TURN and not _TURNS.search(text, 0, last.start()):
        return False
    behind = text[last.end() :]
    return not _TURNS.search(behind) and bool(_EMPTY.sub("", behind))


def has_a_heading_of_an_answer(text: str) -> bool:
    """Whether a text has something behind a heading of an answer, which may be it."""
    return any(_goes_on(text, pair) for pair in _PAIRS)


def _goes_on(text: str, pair: _Pair) -> bool:
    last = _last(pair.answer, text)
    if last is None or pair.question.search(text, last.end()):
        return False
    if pair.both and not pair.question.search(text, 0, last.start() + 1):
        return False
    return bool(text[last.end() :].strip(" \t\r\n*"))


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    found = deque(pattern.finditer(text), maxlen=1)
    return found[0] if found else None
