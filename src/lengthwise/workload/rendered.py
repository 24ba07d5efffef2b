"""Chats that were rendered to one text: whether it goes on after its last answer has begun.

Templates differ in what they write around the speakers, not in how it looks: tokens that hardly
occur in any other text (`<|im_start|>assistant`, `[/INST]`, `<｜Assistant｜>`), or headings such as
`Assistant:` and `### Response:`. The first are proof of a rendered chat; the second are a sign.
"""

from __future__ import annotations

import re
from collections import deque
from typing import Final, NamedTuple

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
