"""What the lexical predictor looks at: words, word pairs, how a prompt opens, and its shape.

Seven groups of features, each hashed into its own part of one table of buckets:

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

from lengthwise.predict.feature_hashing import (
    ENTRIES,
    GROUP_BITS,
    MOST_FEATURES,
    ORIGIN,
    hashed_features,
)
from lengthwise.predict.words import Template, Vocabulary, Words, new_words, read_words
from lengthwise.workload.request_facts import Facts

#: Of what the features mean. A group may be added without a new one; artifacts do not have it then.
FEATURES_VERSION: Final = 1
TENANT: Final = "lengthwise_tenant"  #: hint: who sends the request
LORA: Final = "lengthwise_lora"  #: hint: the name of the adapter that it is sent to
FACTS: Final = "lengthwise_facts"  #: hint: its `Facts`, what it says beside its prompt

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
        buckets=np.zeros(MOST_FEATURES, dtype=np.int32),
        homes=np.zeros(MOST_FEATURES, dtype=np.int32),
        entries=np.zeros(ENTRIES, dtype=np.int32),
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
    found = hashed_features(  # one by one, as in `read_words`
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
    return ORIGIN << GROUP_BITS | (digest & ((1 << GROUP_BITS) - 1) & ~3) | own
