"""What the lexical predictor looks at: words, word pairs, how a prompt opens, and its shape.

The prompt's text is rebuilt from its token ids with a table of each token's bytes, so that features
are those of the text whatever the tokenizer, and serving, which knows token ids only, finds exactly
what training found. One compiled function does both. A feature is present or absent: how often it
occurs was measured to add nothing.

Six groups of features, each hashed into its own part of one table of buckets:

    words      every word
    pairs      every two adjacent words
    skips      every two words with one between them
    places     the words of the first line, with and without whether another line follows; how the
               prompt begins (1 to 4 words), and how its first line and all of it end (1 or 2)
    openings   every two of the first ten words that are further apart
    shape      length and lines of the whole, of the first line and of the rest; the first word with
               the length; numbers by magnitude and what they count; the last character

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

GROUPS: Final = 6  #: words, pairs, skips, places, openings, shape
GROUP_BITS: Final = 17  #: log2 of the buckets of a group
BUCKETS: Final = GROUPS << GROUP_BITS  #: buckets in all
WINDOW_TOKENS: Final = 512  #: tokens read at each end of a prompt
SPECIAL: Final = 0xFF  #: stands for a special token in the text; not a byte of UTF-8
_GAP: Final = 0xFE  #: stands for what is not read of a long prompt; not a byte of UTF-8 either

_GAP_TOKEN: Final = -1
_TOKEN_BYTES: Final = 64  #: bytes read of one token; longer ones are runs of spaces and the like
_TEXT_BYTES: Final = (2 * WINDOW_TOKENS + 1) * _TOKEN_BYTES
_MOST_WORDS: Final = 2048  #: words read of one prompt
_MOST_FEATURES: Final = 6 * _MOST_WORDS + 256
_LINE_WORDS: Final = 16  #: words of the first line that are looked at
_OPENING_WORDS: Final = 10  #: words whose pairs are the openings
_MOST_LINES: Final = 12  #: more lines than this count as this many
_MOST_DIGITS: Final = 6  #: digits read of a number

_WORDS: Final = 0
_PAIRS: Final = 1
_SKIPS: Final = 2
_PLACES: Final = 3
_OPENINGS: Final = 4
_SHAPE: Final = 5

# Kinds of bytes, see `_kind`.
_SPACE: Final = 0
_LETTER: Final = 1
_DIGIT: Final = 2
_SINGLE: Final = 3
_BREAK: Final = 4

# What the keys of `places` and `shape` begin with, so that they differ from one another.
_IN_LINE: Final = np.uint64(1)
_IN_ONLY_LINE: Final = np.uint64(2)
_IN_FIRST_LINE: Final = np.uint64(3)
_BEGINNING: Final = np.uint64(4)
_ENDING: Final = np.uint64(5)
_LINE_ENDING: Final = np.uint64(6)
_LENGTH: Final = np.uint64(7)
_LINES: Final = np.uint64(8)
_LINE_LENGTH: Final = np.uint64(9)
_REST_LENGTH: Final = np.uint64(10)
_FIRST_AND_LENGTH: Final = np.uint64(11)
_MAGNITUDE: Final = np.uint64(12)
_COUNTED: Final = np.uint64(13)
_MAGNITUDE_COUNTED: Final = np.uint64(14)
_LAST: Final = np.uint64(15)

# FNV-1a for words, and the finaliser of MurmurHash3 to mix keys.
_FNV_OFFSET: Final = np.uint64(0xCBF29CE484222325)
_FNV_PRIME: Final = np.uint64(0x100000001B3)
_MIX_1: Final = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_PAIR: Final = np.uint64(0x9E3779B97F4A7C15)
_HALF: Final = np.uint64(33)
_BUCKET_SHIFT: Final = np.uint64(64 - GROUP_BITS)


class Vocabulary(NamedTuple):
    """The bytes that each token id stands for."""

    flat: NDArray[np.uint8]  #: all tokens' bytes, one after the other
    offsets: NDArray[np.int64]  #: shape (tokens + 1,): where each begins


class Template(NamedTuple):
    """What a chat template puts around the user's words."""

    before: NDArray[np.uint8]  #: shape (n,): the bytes just before the user's words
    after: NDArray[np.uint8]  #: shape (m,): the bytes from their end to the end of the prompt


class Scratch(NamedTuple):
    """Room for one prompt's features, reused from call to call."""

    text: NDArray[np.uint8]
    words: NDArray[np.uint64]  #: hash of each word
    magnitudes: NDArray[np.int8]  #: int(2 · log2(number + 1)) of each word that is one, else -1
    buckets: NDArray[np.int32]  #: result: the distinct features
    slots: NDArray[np.int32]  #: bucket -> its place in `buckets`, meaningless where not listed


def new_scratch() -> Scratch:
    """Room for `find_features`."""
    return Scratch(
        text=np.zeros(_TEXT_BYTES, dtype=np.uint8),
        words=np.zeros(_MOST_WORDS, dtype=np.uint64),
        magnitudes=np.zeros(_MOST_WORDS, dtype=np.int8),
        buckets=np.zeros(_MOST_FEATURES, dtype=np.int32),
        slots=np.zeros(BUCKETS, dtype=np.int32),
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


def find_features(
    token_ids: Sequence[int], vocabulary: Vocabulary, template: Template, scratch: Scratch
) -> int:
    """Write the distinct features of one prompt into `scratch.buckets`.

    Args:
        token_ids: the prompt. Ids outside of the vocabulary count as special tokens.
        vocabulary: each token's bytes.
        template: what to leave aside.
        scratch: where the result goes.

    Returns:
        how many there are.
    """
    # Handing over arrays one by one is five times as fast as in tuples.
    return _find_features(read_window(token_ids), len(token_ids), *vocabulary, *template, *scratch)


@compiled
def _find_features(
    window: NDArray[np.int64],
    total_tokens: int,
    flat: NDArray[np.uint8],
    offsets: NDArray[np.int64],
    before: NDArray[np.uint8],
    after: NDArray[np.uint8],
    text: NDArray[np.uint8],
    words: NDArray[np.uint64],
    magnitudes: NDArray[np.int8],
    buckets: NDArray[np.int32],
    slots: NDArray[np.int32],
) -> int:
    vocabulary, template = Vocabulary(flat, offsets), Template(before, after)
    scratch = Scratch(text, words, magnitudes, buckets, slots)
    size = _rebuild_text(window, vocabulary, scratch.text)
    start, end = _find_turn(scratch.text, size, template)
    count, line = _split_words(scratch.text, start, end, scratch)
    found = _add_words(count, 0, scratch)
    found = _add_places(count, line, found, scratch)
    found = _add_openings(count, found, scratch)
    # Of a long prompt only a window is read: the rest is taken to have tokens as long.
    scale = total_tokens / max(1, window.size)
    found = _add_lengths(start, end, scale, count, line, found, scratch)
    return _add_numbers(count, found, scratch)


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
    text: NDArray[np.uint8], start: int, end: int, scratch: Scratch
) -> tuple[int, int]:
    """Write the words' hashes and magnitudes. A hash of 0 is a break.

    Returns:
        how many words there are, and how many of them are in the first line that has any.
    """
    count = 0
    line = -1
    at = start
    while at < end and count < _MOST_WORDS:
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
        scratch.words[count] = np.uint64(0) if kind == _BREAK else word
        scratch.magnitudes[count] = _magnitude(number + 1.0) if kind == _DIGIT else -1
        count += 1
    return count, line if line >= 0 else count


@compiled
def _mix(first: np.uint64, second: np.uint64) -> np.uint64:
    """One key of two, all bits well spread."""
    key = first * _PAIR + second
    key = (key ^ (key >> _HALF)) * _MIX_1
    key = (key ^ (key >> _HALF)) * _MIX_2
    return key ^ (key >> _HALF)


@compiled
def _add(group: int, key: np.uint64, found: int, scratch: Scratch) -> int:
    """Add the feature of a mixed key, if it is new; return how many there are now."""
    bucket = np.int32((group << GROUP_BITS) | np.int64(key >> _BUCKET_SHIFT))
    # A sparse set: a slot is in use only if the list agrees, so that nothing needs clearing.
    slot = scratch.slots[bucket]
    if slot < found and scratch.buckets[slot] == bucket:
        return found
    scratch.slots[bucket] = found
    scratch.buckets[found] = bucket
    return found + 1


@compiled
def _add_words(words: int, found: int, scratch: Scratch) -> int:
    """Words, pairs and skips."""
    before, previous = np.uint64(0), np.uint64(0)
    for index in range(words):
        word = scratch.words[index]
        if word != 0:
            found = _add(_WORDS, _mix(word, np.uint64(0)), found, scratch)
            if previous != 0:
                found = _add(_PAIRS, _mix(previous, word), found, scratch)
                if before != 0:
                    found = _add(_SKIPS, _mix(before, word), found, scratch)
        before, previous = previous, word
    return found


@compiled
def _add_places(words: int, line: int, found: int, scratch: Scratch) -> int:
    """The first line's words, the beginning and the ends."""
    in_which = _IN_ONLY_LINE if line == words else _IN_FIRST_LINE
    for index in range(min(line, _LINE_WORDS)):
        word = scratch.words[index]
        found = _add(_PLACES, _mix(_IN_LINE, word), found, scratch)
        found = _add(_PLACES, _mix(in_which, word), found, scratch)
    beginning = _BEGINNING
    for index in range(min(words, 4)):
        beginning = _mix(beginning, scratch.words[index])
        found = _add(_PLACES, beginning, found, scratch)
    ending = _ENDING
    for index in range(words - 1, max(-1, words - 3), -1):
        ending = _mix(ending, scratch.words[index])
        found = _add(_PLACES, ending, found, scratch)
    ending = _LINE_ENDING
    for index in range(line - 1, max(-1, line - 3), -1):
        ending = _mix(ending, scratch.words[index])
        found = _add(_PLACES, ending, found, scratch)
    return found


@compiled
def _add_openings(words: int, found: int, scratch: Scratch) -> int:
    """Pairs of the first words."""
    most = min(words, _OPENING_WORDS)
    for first in range(most):
        for second in range(first + 2, most):
            key = _mix(scratch.words[first], scratch.words[second])
            found = _add(_OPENINGS, key, found, scratch)
    return found


@compiled
def _magnitude(number: float) -> np.uint64:
    """A step of a scale on which each doubling is two steps."""
    return np.uint64(int(2 * np.log2(max(1.0, number))))


@compiled
def _add_lengths(
    start: int, end: int, scale: float, words: int, line: int, found: int, scratch: Scratch
) -> int:
    """How long the prompt and its parts are, and its last character."""
    one = np.uint64(1)
    length = _magnitude((end - start) * scale)
    # Neighbouring steps too, so that nearly equal lengths have something in common.
    found = _add(_SHAPE, _mix(_LENGTH, length), found, scratch)
    found = _add(_SHAPE, _mix(_LENGTH, length + one), found, scratch)
    found = _add(_SHAPE, _mix(_LENGTH, length + one + one), found, scratch)
    length = _magnitude(float(line))
    found = _add(_SHAPE, _mix(_LINE_LENGTH, length), found, scratch)
    found = _add(_SHAPE, _mix(_LINE_LENGTH, length + one), found, scratch)
    length = _magnitude(1.0 + words - line)
    found = _add(_SHAPE, _mix(_REST_LENGTH, length), found, scratch)
    if words > 0:
        length = _magnitude(1.0 + words) >> one
        key = _mix(_mix(_FIRST_AND_LENGTH, length), scratch.words[0])
        found = _add(_SHAPE, key, found, scratch)
    lines = 0
    last = np.uint64(0)
    for index in range(start, end):
        byte = scratch.text[index]
        if byte == 0x0A and lines < _MOST_LINES:
            lines += 1
        if byte > 0x20:
            last = np.uint64(byte)
    found = _add(_SHAPE, _mix(_LINES, np.uint64(lines)), found, scratch)
    return _add(_SHAPE, _mix(_LAST, last), found, scratch)


@compiled
def _add_numbers(words: int, found: int, scratch: Scratch) -> int:
    """Numbers by magnitude, and what they count."""
    for index in range(words):
        if scratch.magnitudes[index] < 0:
            continue
        magnitude = np.uint64(scratch.magnitudes[index])
        counted = scratch.words[index + 1] if index + 1 < words else np.uint64(0)
        both = _mix(_mix(_MAGNITUDE_COUNTED, magnitude), counted)
        found = _add(_SHAPE, _mix(_MAGNITUDE, magnitude), found, scratch)
        found = _add(_SHAPE, _mix(_COUNTED, counted), found, scratch)
        found = _add(_SHAPE, both, found, scratch)
    return found
