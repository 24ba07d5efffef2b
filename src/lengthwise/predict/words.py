"""A prompt's words, from its token ids.

Serving knows token ids only. The text is rebuilt from them with a table of each token's bytes, so
that words are the same whatever the tokenizer.

A word is a run of letters or of digits, or one other character. ASCII is read in lower case.
Characters of two UTF-8 bytes (accented Latin, Greek, Cyrillic, Hebrew, Arabic) are letters; those
of three and four (Chinese, Japanese, Korean, emoji) are a word each, as these scripts put no spaces
between words.

The text is the last user turn where the chat template can be recognised, else all of it. Of a
prompt above 1,024 tokens the first and the last 512 are read: the cost of a prompt is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled

WINDOW_TOKENS: Final = 512  #: tokens read at each end of a prompt
MOST_WORDS: Final = 2048  #: words read of one prompt
SPECIAL: Final = 0xFF  #: stands for a special token in the text; not a byte of UTF-8
_GAP: Final = 0xFE  #: stands for what is not read of a long prompt; not a byte of UTF-8 either

_GAP_TOKEN: Final = -1
_TOKEN_BYTES: Final = 64  #: bytes read of one token; longer ones are runs of spaces and the like
_TEXT_BYTES: Final = (2 * WINDOW_TOKENS + 1) * _TOKEN_BYTES
_MOST_DIGITS: Final = 6  #: digits read of a number

# Kinds of bytes, see `_kind`.
_SPACE: Final = 0
_LETTER: Final = 1
_DIGIT: Final = 2
_SINGLE: Final = 3
_BREAK: Final = 4

# FNV-1a.
_FNV_OFFSET: Final = np.uint64(0xCBF29CE484222325)
_FNV_PRIME: Final = np.uint64(0x100000001B3)


class Vocabulary(NamedTuple):
    """The bytes that each token id stands for."""

    flat: NDArray[np.uint8]  #: all tokens' bytes, one after the other
    offsets: NDArray[np.int64]  #: shape (tokens + 1,): where each begins


class Template(NamedTuple):
    """What a chat template puts around the user's words."""

    before: NDArray[np.uint8]  #: shape (n,): the bytes just before the user's words
    after: NDArray[np.uint8]  #: shape (m,): the bytes from their end to the end of the prompt


class Words(NamedTuple):
    """Room for one prompt's words, reused from call to call."""

    text: NDArray[np.uint8]
    hashes: NDArray[np.uint64]  #: of each word; 0 is a break, such as a special token
    numbers: NDArray[np.int32]  #: what each word says if it is a number, else −1


class Outline(NamedTuple):
    """What else is known of a prompt."""

    words: int  #: how many there are
    line_words: int  #: how many of them are in the first line that has any
    size: float  #: bytes, extrapolated where only a window was read
    newlines: int
    last: int  #: the last byte that is not a space, 0 if none
    system: int  #: hash of what stands ahead of the user's first turn, such as instructions


def new_words() -> Words:
    """Room for `read_words`."""
    return Words(
        text=np.zeros(_TEXT_BYTES, dtype=np.uint8),
        hashes=np.zeros(MOST_WORDS, dtype=np.uint64),
        numbers=np.zeros(MOST_WORDS, dtype=np.int32),
    )


def read_words(
    token_ids: Sequence[int], vocabulary: Vocabulary, template: Template, room: Words
) -> Outline:
    """Split a prompt into words.

    Args:
        token_ids: the prompt. Ids outside of the vocabulary count as special tokens.
        vocabulary: each token's bytes.
        template: what to leave aside.
        room: where the words go.
    """
    # Handing over arrays one by one is several times as fast as in tuples.
    return Outline(
        *_read(
            read_window(token_ids),
            len(token_ids),
            vocabulary.flat,
            vocabulary.offsets,
            template.before,
            template.after,
            room.text,
            room.hashes,
            room.numbers,
        )
    )


def read_window(token_ids: Sequence[int]) -> NDArray[np.int64]:
    """The tokens that are read: all, or the first and last `WINDOW_TOKENS` around a gap."""
    count = len(token_ids)
    if count <= 2 * WINDOW_TOKENS:
        return np.fromiter(token_ids, np.int64, count)
    window = np.empty(2 * WINDOW_TOKENS + 1, dtype=np.int64)
    window[:WINDOW_TOKENS] = token_ids[:WINDOW_TOKENS]
    window[WINDOW_TOKENS] = _GAP_TOKEN
    window[WINDOW_TOKENS + 1 :] = token_ids[count - WINDOW_TOKENS :]
    return window


@compiled
def _read(
    window: NDArray[np.int64],
    total_tokens: int,
    flat: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    text: NDArray[np.uint8],
    hashes: NDArray[np.uint64],
    numbers: NDArray[np.int32],
) -> tuple[int, int, float, int, int, int]:
    size = _rebuild_text(window, Vocabulary(flat, offsets), text)
    start, end = _find_turn(text, size, Template(before, after))
    count, line = _split_words(text, start, end, hashes, numbers)
    newlines = 0
    last = 0
    for index in range(start, end):
        if text[index] == 0x0A:
            newlines += 1
        if text[index] > 0x20:
            last = int(text[index])
    # What was not read of a long prompt is taken to have tokens as long.
    length = (end - start) * total_tokens / max(1, window.size)
    return count, line, length, newlines, last, _hash_ahead(text, start, before)


@compiled
def _rebuild_text(
    window: NDArray[np.int64], vocabulary: Vocabulary, text: NDArray[np.uint8]
) -> int:
    """Write the bytes of the tokens into `text`; return how many."""
    size = 0
    tokens = vocabulary.offsets.size - 1
    for token in window:
        if token < 0 or token >= tokens:
            begin, end = 0, 0
        else:
            begin, end = vocabulary.offsets[token], vocabulary.offsets[token + 1]
        if begin == end:
            text[size] = _GAP if token == _GAP_TOKEN else SPECIAL
            size += 1
            continue
        for index in range(begin, min(end, begin + _TOKEN_BYTES)):
            text[size] = vocabulary.flat[index]
            size += 1
    return size


@compiled
def _find_turn(text: NDArray[np.uint8], size: int, template: Template) -> tuple[int, int]:
    """The user's last turn: where it begins in `text`, and where it ends."""
    before, after = template.before, template.after
    end = size
    if 0 < after.size <= size and _occurs(text, size - after.size, after):
        end = size - after.size
    if before.size > 0:
        for start in range(end - before.size, -1, -1):
            if _occurs(text, start, before):
                return start + before.size, end
    return 0, end


@compiled
def _hash_ahead(text: NDArray[np.uint8], end: int, before: NDArray[np.uint8]) -> int:
    """The hash of all bytes ahead of the user's first turn; `end` is where the last begins."""
    turn = 0
    if before.size > 0:
        while turn + before.size < end and not _occurs(text, turn, before):
            turn += 1
    ahead = _FNV_OFFSET
    for index in range(turn):
        ahead = (ahead ^ np.uint64(text[index])) * _FNV_PRIME
    # 63 bits, so that it comes back from Python as it went there.
    return np.int64(ahead >> np.uint64(1))  # type: ignore[return-value]


@compiled
def _occurs(text: NDArray[np.uint8], start: int, part: NDArray[np.uint8]) -> bool:
    for index in range(part.size):  # noqa: SIM110 (numba knows no generators)
        if text[start + index] != part[index]:
            return False
    return True


@compiled
def _kind(byte: int) -> int:
    """What a byte is part of."""
    if byte <= 0x20 or byte == 0x7F:
        return _SPACE
    if 0x61 <= byte <= 0x7A or 0x41 <= byte <= 0x5A or 0x80 <= byte < 0xE0:
        return _LETTER
    if 0x30 <= byte <= 0x39:
        return _DIGIT
    return _BREAK if byte >= 0xF8 else _SINGLE


@compiled
def _split_words(
    text: NDArray[np.uint8],
    start: int,
    end: int,
    hashes: NDArray[np.uint64],
    numbers: NDArray[np.int32],
) -> tuple[int, int]:
    """Write the words' hashes and numbers.

    Returns:
        how many words there are, and how many of them are in the first line that has any.
    """
    count = 0
    line = -1
    at = start
    while at < end and count < MOST_WORDS:
        kind = _kind(text[at])
        if kind == _SPACE:
            if text[at] == 0x0A and line < 0 and count > 0:
                line = count
            at += 1
            continue
        word = _FNV_OFFSET
        number = 0
        first = at
        while at < end:
            byte = text[at]
            if at > first:
                if kind == _SINGLE:
                    # One character: whatever continues its UTF-8 sequence, and no more.
                    if text[first] < 0xE0 or byte < 0x80 or byte >= 0xC0:
                        break
                elif _kind(byte) != kind and not (
                    # An apostrophe inside of a word is part of it.
                    kind == _LETTER
                    and byte == 0x27
                    and at + 1 < end
                    and _kind(text[at + 1]) == _LETTER
                ):
                    break
            if 0x41 <= byte <= 0x5A:
                byte += 0x20
            if kind == _DIGIT and at - first < _MOST_DIGITS:
                number = number * 10 + byte - 0x30
            word = (word ^ np.uint64(byte)) * _FNV_PRIME
            at += 1
        hashes[count] = np.uint64(0) if kind == _BREAK else word
        numbers[count] = number if kind == _DIGIT else -1
        count += 1
    return count, line if line >= 0 else count
