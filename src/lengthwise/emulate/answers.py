"""How long an emulated answer is, and what it says.

Without a model nothing decides when an answer ends, so its length is, in this order:

given      by the caller in `vllm_xargs`: the hint that tells oracles the true length
max_tokens where the request ignores the end of sequence
drawn      for the prompt: log-normal, the same whenever the same prompt (and seed) comes

A drawn length depends on the words of the prompt, so that there is something to learn: each token
among the first ones adds its own fixed share, drawn once for that token, to the logarithm of the
median. A predictor that sees these words can know `PROMPT_SHARE` of the variance of the logarithm;
the rest is chance, as with a sampled answer.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Mapping, Sequence
from functools import lru_cache
from statistics import NormalDist
from typing import Any, Final

from lengthwise.predict.baselines import TRUE_TOKENS
from lengthwise.predict.tokenizer import load_tokenizer

MEDIAN_TOKENS: Final = 150  #: of all drawn lengths; about what chats have
SIGMA: Final = 1.0  #: standard deviation of the logarithm of drawn lengths
PROMPT_SHARE: Final = 0.75  #: of its variance, what the prompt's words decide
OPENING_TOKENS: Final = 24  #: how many tokens of a prompt decide its answer's median

#: What answers say, over and over.
TEXT: Final = (
    " The morning was quiet and the road was long. We walked to the river, sat down in the grass"
    " and watched the boats go by. Nobody was in a hurry. In the evening there was soup and bread,"
    " and somebody told a story about a clock that had stopped."
)
_END_TOKENS: Final = 2  # so many of the first token ids may be no words

_STANDARD_NORMAL: Final = NormalDist()


def spoken_tokens(model_config: Any) -> Sequence[int]:
    """The token ids that answers are made of, for vLLM's model configuration: harmless words.

    Raises:
        InputError: the model's tokenizer cannot be loaded.
    """
    if model_config.skip_tokenizer_init:
        return range(_END_TOKENS, model_config.get_vocab_size())
    return load_tokenizer(model_config.tokenizer).encode_words(TEXT)


def answer_tokens(prompt: Sequence[int], sampling: Any) -> int:
    """The length of an answer in tokens, its end of sequence included, at least 1.

    Args:
        prompt: the prompt's token ids.
        sampling: vLLM's sampling parameters. `max_tokens` may end the answer sooner: that is the
            scheduler's business, as with a real model.
    """
    length = given_tokens(sampling.extra_args or {})
    if length is None:
        if sampling.ignore_eos:
            return int(sampling.max_tokens)
        length = drawn_tokens(prompt, sampling.seed)
    # The end of sequence is ruled out for the first `min_tokens` tokens.
    return max(length, sampling.min_tokens + 1) if sampling.min_tokens else length


def given_tokens(hints: Mapping[str, object]) -> int | None:
    """The length that the caller gave; None without one, or with one that is no length."""
    value = hints.get(TRUE_TOKENS)
    try:
        # Values sent over HTTP may arrive as strings.
        length = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        return None
    return max(1, round(length)) if math.isfinite(length) else None


def drawn_tokens(prompt: Sequence[int], seed: int | None = None) -> int:
    """A length drawn for a prompt: log-normal, and always the same for the same arguments."""
    chance = _normal(array("q", prompt).tobytes(), b"" if seed is None else str(seed).encode())
    deviations = (
        math.sqrt(PROMPT_SHARE) * prompt_effect(prompt) + math.sqrt(1 - PROMPT_SHARE) * chance
    )
    return max(1, round(MEDIAN_TOKENS * math.exp(SIGMA * deviations)))


def prompt_effect(prompt: Sequence[int]) -> float:
    """What the opening tokens of a prompt say of its answer: about standard normal over prompts."""
    tokens = set(prompt[:OPENING_TOKENS])
    return sum(map(_token_effect, tokens)) / math.sqrt(max(len(tokens), 1))


@lru_cache(maxsize=1 << 16)
def _token_effect(token: int) -> float:
    return _normal(array("q", [token]).tobytes(), b"token")


def _normal(data: bytes, key: bytes) -> float:
    """A standard normal number that depends on the bytes alone, the same on every machine."""
    digest = hashlib.blake2b(data, digest_size=8, key=key).digest()
    uniform = (int.from_bytes(digest, "little") + 0.5) / 2**64
    # The doubles nearest to 0 and 1 may be 0 and 1 themselves, where the inverse is infinite.
    return _STANDARD_NORMAL.inv_cdf(min(max(uniform, 1e-15), 1 - 1e-15))
