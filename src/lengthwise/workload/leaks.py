"""Prompts that hold their own answers, from which a predictor would learn to read, not to predict.

Readers cut a prompt where its answer begins. What is looked for here is what no reader can know: an
answer that was copied into a column, or into a message, of the prompt. An answer of 20 tokens or
more anywhere in its prompt is one, and so is a shorter one at the end of the prompt or of a
message. Tasks of quoting have such rows, too, so that a reader of the report may want them kept.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from lengthwise.workload.prompt_layouts.layout import Exchange

LEAK_TOKENS: Final = 20  #: an answer of so many tokens is not in its prompt by chance

# Of text, without a tokenizer: 20 tokens are hardly ever fewer words or characters than this.
_WORDS: Final = 10
_CHARACTERS: Final = 40
_WORDS_AT_END: Final = 3  # of an answer that ends a prompt: fewer are no sign

# Where a chat template begins an answer, and what follows up to the next turn.
_TEMPLATES: Final = re.compile(
    r"(?:<\|im_start\|>assistant\s|<\|start_header_id\|>assistant<\|end_header_id\|>|\[/INST\]|"
    r"<\|assistant\|>|<start_of_turn>model\s|<｜Assistant｜>|\bUSER: .*?\bASSISTANT:)"
    r"\s*(?!<|\bUSER:|\Z)\S",
    re.DOTALL,
)
_HEADINGS: Final = re.compile(
    r"(?:^|\n)[ \t#*]*(?:assistant|response|answer|gpt|bot|ai)[*]*[ \t]*:[*]*\s*\S", re.IGNORECASE
)
_QUESTIONS: Final = re.compile(
    r"(?:^|\n)[ \t#*]*(?:user|human|instruction|question)[*]*[ \t]*:", re.IGNORECASE
)


def holds_its_answer(exchange: Exchange) -> bool:
    """Whether a prompt has its own answer in it, long enough to be no chance."""
    answers = [text for text in (exchange.answer, *exchange.other_answers) if text]
    wanted = [_plain(text) for text in answers]
    if not any(wanted):
        return False
    for text in _texts(exchange):
        said = _plain(text)
        for answer in wanted:
            long = len(answer) >= _CHARACTERS or answer.count(" ") + 1 >= _WORDS
            if long and answer in said:
                return True
            if answer.count(" ") + 1 >= _WORDS_AT_END and _ends_with(said, answer):
                return True
    return False


def ends_with_its_answer(exchange: Exchange) -> bool:
    """Whether a prompt, or a message of it, ends with its own answer, however short."""
    answer = _plain(exchange.answer or "")
    return bool(answer) and any(_ends_with(_plain(text), answer) for text in _texts(exchange))


def is_rendered_with_an_answer(exchange: Exchange) -> bool:
    """Whether a prompt is a rendered chat that goes on after the answer's beginning."""
    return exchange.chat is None and bool(_TEMPLATES.search(exchange.prompt))


def has_a_heading_of_an_answer(exchange: Exchange) -> bool:
    """Whether a prompt has something behind a line such as "### Response:", which may be it."""
    if exchange.chat is not None:
        return False
    headings = list(_HEADINGS.finditer(exchange.prompt))
    return bool(headings) and not _QUESTIONS.search(exchange.prompt, headings[-1].end())


def _texts(exchange: Exchange) -> Iterator[str]:
    yield from exchange.beside
    if exchange.chat is None:
        yield exchange.prompt
    else:
        yield from (message.content for message in exchange.chat.messages())


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _ends_with(said: str, answer: str) -> bool:
    return said.rstrip(" .!?\"'`)*").endswith(answer.rstrip(" .!?\"'`)*"))
