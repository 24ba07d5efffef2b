"""What the lexical predictor looks at: words, word pairs, how a prompt opens, and its shape.

A prompt's words come from its token ids: serving knows those only. The text is rebuilt from them
with a table of each token's bytes, so that words are the same whatever the tokenizer.

A word is a run of letters or of digits, or one other character. ASCII is read in lower case.
Characters of two UTF-8 bytes (accented Latin, Greek, Cyrillic, Hebrew, Arabic) are letters; those
of three and four (Chinese, Japanese, Korean, emoji) are a word each, as these scripts put no spaces
between words.

The text is the last user turn where the chat template can be recognised, else all of it. Of a
prompt above 1,024 tokens the first and the last 512 are read: the cost of a prompt is bounded.

There are seven groups of features, each hashed into its own part of one table of buckets:

    words      every word
    pairs      every two adjacent words
    skips      every two words with one between them
    places     the words of the first line, with and without whether another line follows; how the
               prompt begins (1 to 4 words), and how its first line and all of it end (1 or 2)
    openings   every two of the first ten words that are further apart
    shape      length and lines of the whole, of the first line and of the rest; the first word with
               the length; numbers by magnitude and what they count; the last character
    origin     the prompt of the system; tenant and LoRA adapter where the request names them; how
               it is sampled, where it is cut, and what is attached to it

A feature is present or absent: how often it occurs was measured to add nothing. Training and
serving call the same compiled function.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.predict.prediction import FACTS, LORA, TENANT
from lengthwise.workload.conversation import Facts

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


#: Of what the features mean. A group may be added without a new one; artifacts do not have it then.
FEATURES_VERSION: Final = 1

GROUP_NAMES: Final = ("words", "pairs", "skips", "places", "openings", "shape", "origin")
GROUPS: Final = len(GROUP_NAMES)
GROUP_BITS: Final = 17  #: log2 of the buckets of a group
BUCKETS: Final = GROUPS << GROUP_BITS  #: buckets in all
WORD_BUCKETS: Final = GROUP_NAMES.index("origin") << GROUP_BITS  #: the first ones: of what is asked

_MOST_FEATURES: Final = 6 * MOST_WORDS + 256
_ENTRIES: Final = 1 << 15  #: of the table that finds repeated features; above _MOST_FEATURES
_LINE_WORDS: Final = 16  #: words of the first line that are looked at
_OPENING_WORDS: Final = 10  #: words whose pairs are the openings
_MOST_NEWLINES: Final = 12  #: more than this count as this many

_WORDS, _PAIRS, _SKIPS, _PLACES, _OPENINGS, _SHAPE, _ORIGIN = range(GROUPS)

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
_SYSTEM: Final = np.uint64(16)

# The finaliser of MurmurHash3, to mix keys.
_MIX_1: Final = np.uint64(0xFF51AFD7ED558CCD)
_MIX_2: Final = np.uint64(0xC4CEB9FE1A85EC53)
_PAIR: Final = np.uint64(0x9E3779B97F4A7C15)
_HALF: Final = np.uint64(33)
_BUCKET_SHIFT: Final = np.uint64(64 - GROUP_BITS)

_NO_HINTS: Final[Mapping[str, object]] = {}


class FeatureRows(NamedTuple):
    """The features of many prompts."""

    starts: NDArray[np.int64]  #: shape (prompts + 1,)
    buckets: NDArray[np.int32]  #: shape (entries,)


class Scratch(NamedTuple):
    """Room for one prompt's features, reused from call to call."""

    words: Words
    buckets: NDArray[np.int32]  #: result: the distinct features
    homes: NDArray[np.int32]  #: of each of them, its entry in `entries`
    entries: NDArray[np.int32]  #: hash table: a feature's place in `buckets`, if its home agrees


def new_scratch() -> Scratch:
    """Room for `find_features`."""
    return Scratch(
        words=new_words(),
        buckets=np.zeros(_MOST_FEATURES, dtype=np.int32),
        homes=np.zeros(_MOST_FEATURES, dtype=np.int32),
        entries=np.zeros(_ENTRIES, dtype=np.int32),
    )


def find_features(
    token_ids: Sequence[int],
    vocabulary: Vocabulary,
    template: Template,
    scratch: Scratch,
    hints: Mapping[str, object] = _NO_HINTS,
) -> int:
    """Write the distinct features of one prompt into `scratch.buckets`.

    Args:
        token_ids: the prompt. Ids outside of the vocabulary count as special tokens.
        vocabulary: each token's bytes.
        template: what to leave aside.
        scratch: where the result goes.
        hints: what came with the request; `TENANT`, `LORA` and `FACTS` are looked at.

    Returns:
        how many there are.
    """
    outline = read_words(token_ids, vocabulary, template, scratch.words)
    found = _hashed(  # one by one, as in `read_words`
        *outline,
        scratch.words.hashes,
        scratch.words.numbers,
        scratch.buckets,
        scratch.homes,
        scratch.entries,
    )
    for name in (TENANT, LORA):
        value = hints.get(name)
        if value is not None and value != "":
            scratch.buckets[found] = _origin_bucket(name, value)
            found += 1
    facts = hints.get(FACTS)
    if isinstance(facts, Facts):
        for fact in facts.names():
            scratch.buckets[found] = _origin_bucket(FACTS, fact)
            found += 1
    return found


def _origin_bucket(name: str, value: object) -> int:
    """The feature of a name that came with a request; what has one name is one feature."""
    digest = zlib.crc32(str(value).encode())
    # Its last two bits say which name it is, so that features of one prompt are distinct.
    own = {TENANT: 1, LORA: 2, FACTS: 3}[name]
    return _ORIGIN << GROUP_BITS | (digest & ((1 << GROUP_BITS) - 1) & ~3) | own


class _Found(NamedTuple):
    """A prompt's words, and room for their features."""

    hashes: NDArray[np.uint64]
    numbers: NDArray[np.int32]
    buckets: NDArray[np.int32]
    homes: NDArray[np.int32]
    entries: NDArray[np.int32]


@compiled
def _hashed(
    words: int,
    line_words: int,
    size: float,
    newlines: int,
    last: int,
    system: int,
    hashes: NDArray[np.uint64],
    numbers: NDArray[np.int32],
    buckets: NDArray[np.int32],
    homes: NDArray[np.int32],
    entries: NDArray[np.int32],
) -> int:
    """Write the distinct features of a prompt into `buckets`; return how many there are.

    What is known of the prompt is as `read_words` gives it; the arrays are those of `Words`
    and `Scratch`.
    """
    room = _Found(hashes, numbers, buckets, homes, entries)
    found = _add_words(words, 0, room)
    found = _add_places(words, line_words, found, room)
    found = _add_openings(words, found, room)
    found = _add_lengths(words, line_words, size, found, room)
    found = _add(_SHAPE, _mix(_LINES, np.uint64(min(newlines, _MOST_NEWLINES))), found, room)
    found = _add(_SHAPE, _mix(_LAST, np.uint64(last)), found, room)
    found = _add_numbers(words, found, room)
    # The last two bits are 0, see `_origin_bucket`.
    key = _mix(_SYSTEM, np.uint64(system)) & ~(np.uint64(3) << _BUCKET_SHIFT)
    return _add(_ORIGIN, key, found, room)


@compiled
def _mix(first: np.uint64, second: np.uint64) -> np.uint64:
    """One key of two, all bits well spread."""
    key = first * _PAIR + second
    key = (key ^ (key >> _HALF)) * _MIX_1
    key = (key ^ (key >> _HALF)) * _MIX_2
    return key ^ (key >> _HALF)


@compiled
def _add(group: int, key: np.uint64, found: int, room: _Found) -> int:
    """Add the feature of a mixed key, if it is new; return how many there are now."""
    bucket = np.int32((group << GROUP_BITS) | np.int64(key >> _BUCKET_SHIFT))
    # Open addressing. An entry is in use only if the feature that it names calls it home, so that
    # nothing needs clearing between prompts; the table is small enough to stay in cache.
    home = bucket & (_ENTRIES - 1)
    place = room.entries[home]
    while place < found and room.homes[place] == home:
        if room.buckets[place] == bucket:
            return found
        home = (home + 1) & (_ENTRIES - 1)
        place = room.entries[home]
    room.entries[home] = found
    room.homes[found] = home
    room.buckets[found] = bucket
    return found + 1


@compiled
def _add_words(words: int, found: int, room: _Found) -> int:
    """Words, pairs and skips."""
    before, previous = np.uint64(0), np.uint64(0)
    for index in range(words):
        word = room.hashes[index]
        if word != 0:
            found = _add(_WORDS, _mix(word, np.uint64(0)), found, room)
            if previous != 0:
                found = _add(_PAIRS, _mix(previous, word), found, room)
                if before != 0:
                    found = _add(_SKIPS, _mix(before, word), found, room)
        before, previous = previous, word
    return found


@compiled
def _add_places(words: int, line_words: int, found: int, room: _Found) -> int:
    """The first line's words, the beginning and the ends."""
    in_which = _IN_ONLY_LINE if line_words == words else _IN_FIRST_LINE
    for index in range(min(line_words, _LINE_WORDS)):
        word = room.hashes[index]
        found = _add(_PLACES, _mix(_IN_LINE, word), found, room)
        found = _add(_PLACES, _mix(in_which, word), found, room)
    beginning = _BEGINNING
    for index in range(min(words, 4)):
        beginning = _mix(beginning, room.hashes[index])
        found = _add(_PLACES, beginning, found, room)
    ending = _ENDING
    for index in range(words - 1, max(-1, words - 3), -1):
        ending = _mix(ending, room.hashes[index])
        found = _add(_PLACES, ending, found, room)
    ending = _LINE_ENDING
    for index in range(line_words - 1, max(-1, line_words - 3), -1):
        ending = _mix(ending, room.hashes[index])
        found = _add(_PLACES, ending, found, room)
    return found


@compiled
def _add_openings(words: int, found: int, room: _Found) -> int:
    """Pairs of the first words."""
    most = min(words, _OPENING_WORDS)
    for first in range(most):
        for second in range(first + 2, most):
            key = _mix(room.hashes[first], room.hashes[second])
            found = _add(_OPENINGS, key, found, room)
    return found


@compiled
def _magnitude(number: float) -> np.uint64:
    """A step of a scale on which each doubling is two steps."""
    return np.uint64(int(2 * np.log2(max(1.0, number))))


@compiled
def _add_lengths(words: int, line_words: int, size: float, found: int, room: _Found) -> int:
    """How long the prompt and its parts are."""
    one = np.uint64(1)
    length = _magnitude(size)
    # Neighbouring steps too, so that nearly equal lengths have something in common.
    found = _add(_SHAPE, _mix(_LENGTH, length), found, room)
    found = _add(_SHAPE, _mix(_LENGTH, length + one), found, room)
    found = _add(_SHAPE, _mix(_LENGTH, length + one + one), found, room)
    length = _magnitude(float(line_words))
    found = _add(_SHAPE, _mix(_LINE_LENGTH, length), found, room)
    found = _add(_SHAPE, _mix(_LINE_LENGTH, length + one), found, room)
    length = _magnitude(1.0 + words - line_words)
    found = _add(_SHAPE, _mix(_REST_LENGTH, length), found, room)
    if words > 0:
        length = _magnitude(1.0 + words) >> one
        key = _mix(_mix(_FIRST_AND_LENGTH, length), room.hashes[0])
        found = _add(_SHAPE, key, found, room)
    return found


@compiled
def _add_numbers(words: int, found: int, room: _Found) -> int:
    """Numbers by magnitude, and what they count."""
    for index in range(words):
        if room.numbers[index] < 0:
            continue
        magnitude = _magnitude(room.numbers[index] + 1.0)
        counted = room.hashes[index + 1] if index + 1 < words else np.uint64(0)
        both = _mix(_mix(_MAGNITUDE_COUNTED, magnitude), counted)
        found = _add(_SHAPE, _mix(_MAGNITUDE, magnitude), found, room)
        found = _add(_SHAPE, _mix(_COUNTED, counted), found, room)
        found = _add(_SHAPE, both, found, room)
    return found
