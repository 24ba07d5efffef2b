"""From the name a user gives to a predictor that answers, and those that learn nothing.

What learns nothing is the bound that a learnt predictor is measured against:

oracle             the true length, as a replay sends it along
noisy-oracle:TAU   the truth with noise, so that its Kendall tau-b is about TAU
prompt-length      the number of prompt tokens
declared           the length that the caller of the API expects
foretold           what another predictor said of the prompt beforehand
"""

from __future__ import annotations

import bisect
import hashlib
import math
import struct
from array import array
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Final

from lengthwise.errors import InputError, one_line, unknown_name
from lengthwise.predict.prediction import (
    MOST_TOKENS,
    REQUEST_ID,
    Prediction,
    PredictionError,
    Predictor,
    Prompt,
)

NO_PREDICTOR: Final = "none"  #: nothing is predicted, which is the order of fcfs; not loaded
BUILT_IN: Final = (
    "oracle",
    "noisy-oracle:TAU",
    "prompt-length",
    "declared",
    "perception-only:URL",
)

TRUE_TOKENS: Final = "lengthwise_true_tokens"  #: hint: the length that a replay will generate
EXPECTED_TOKENS: Final = "lengthwise_expected_tokens"  #: hint: the caller's own estimate
PREDICTION: Final = "lengthwise_prediction"  #: hint: a whole prediction, five numbers

_STANDARD_NORMAL: Final = NormalDist()
_QUANTILE_90: Final = _STANDARD_NORMAL.inv_cdf(0.9)


class _InTokens:
    """Of predictors whose score is a length."""

    def score_at(self, expected: float) -> float:
        """The score of prompts that are expected to take so many tokens."""
        return expected


class Oracle(_InTokens):
    """Knows the answer's length: the bound for every other predictor."""

    name = "oracle"

    def predict(self, prompt: Prompt) -> Prediction:
        """The true length, from the hint `lengthwise_true_tokens`."""
        return _certain(_tokens_hint(prompt.hints, TRUE_TOKENS))


class Declared(_InTokens):
    """Believes the caller, who may know the task: for black-box models and structured pipelines."""

    name = "declared"

    def predict(self, prompt: Prompt) -> Prediction:
        """The caller's estimate, from the hint `lengthwise_expected_tokens`."""
        return _certain(_tokens_hint(prompt.hints, EXPECTED_TOKENS))


class Foretold:
    """Repeats what a predictor said of the real prompt before a replay began."""

    name = "foretold"

    def predict(self, prompt: Prompt) -> Prediction:
        """The prediction in the hint `lengthwise_prediction`."""
        values = prompt.hints.get(PREDICTION)
        if not isinstance(values, list) or len(values) != len(Prediction._fields):
            raise PredictionError(f"the request carries no {PREDICTION}")
        return Prediction(*map(float, values))


class PromptLength(_InTokens):
    """Takes the prompt's length for the answer's: the weakest baseline of the literature."""

    name = "prompt-length"

    def predict(self, prompt: Prompt) -> Prediction:
        """As many tokens as the prompt has."""
        return _certain(float(max(1, len(prompt.token_ids))))


class NoisyOracle(_InTokens):
    """An oracle with an error, to see what a predictor of a given accuracy would be worth.

    The true length's normal score z (its rank among the lengths seen so far, through the normal
    quantile function) is mixed with independent noise, ρ·z + √(1 − ρ²)·ε. For a pair of normals of
    correlation ρ, Kendall's tau is 2/π·arcsin ρ (Greiner's relation), which gives ρ. Mean and
    quantiles are those of the length given its noisy score, so they are calibrated as well.

    A request has the same noise whenever it is predicted, also in another process. The first few
    dozen predictions are less exact, as the distribution of lengths is not known yet, and so are
    all where many lengths are equal.
    """

    _REMEMBERED: Final = 4096  #: lengths kept
    _PRIOR: Final = tuple(
        128 * math.exp(_STANDARD_NORMAL.inv_cdf((index + 0.5) / 16)) for index in range(16)
    )  #: lengths assumed before any is seen: log-normal about 128 tokens, as in common chat traffic
    _MEAN_POINTS: Final = tuple(
        _STANDARD_NORMAL.inv_cdf((index + 0.5) / 8) for index in range(8)
    )  #: where the posterior is evaluated for its mean

    def __init__(self, tau: float, seed: int = 0) -> None:
        """An oracle whose ranking has about the given tau-b, 0 < tau ≤ 1."""
        if not 0 < tau <= 1:
            raise InputError(
                f"noisy-oracle:{tau:g}: tau must be above 0 and at most 1, "
                "for example noisy-oracle:0.5"
            )
        self.name = f"noisy-oracle:{tau:g}"
        self._correlation = math.sin(math.pi / 2 * tau)
        self._noise_deviation = math.sqrt(max(0.0, 1 - self._correlation**2))
        self._seed = seed
        self._lengths = list(self._PRIOR)  # ascending

    def predict(self, prompt: Prompt) -> Prediction:
        """The true length from the hint `lengthwise_true_tokens`, blurred."""
        tokens = _tokens_hint(prompt.hints, TRUE_TOKENS)
        if len(self._lengths) < self._REMEMBERED:
            bisect.insort(self._lengths, tokens)
        noise = self._noise_deviation * self._noise(prompt, tokens)
        noisy = self._correlation * self._normal_score(tokens) + noise

        def length_at(deviations: float) -> float:
            # Given the noisy score, the true one is normal with mean ρ·noisy, variance 1 − ρ².
            return self._length(self._correlation * noisy + self._noise_deviation * deviations)

        return Prediction(
            # In tokens, so that scores stay comparable while the distribution is being learnt. The
            # last term keeps those apart that fall outside of it.
            score=self._length(noisy) + 1e-6 * noisy,
            expected=sum(map(length_at, self._MEAN_POINTS)) / len(self._MEAN_POINTS),
            low=length_at(-_QUANTILE_90),
            median=length_at(0.0),
            high=length_at(_QUANTILE_90),
        )

    def _normal_score(self, tokens: float) -> float:
        """Where a length stands among those seen, as a standard normal number."""
        below = bisect.bisect_left(self._lengths, tokens)
        not_above = bisect.bisect_right(self._lengths, tokens)
        rank = (below + not_above) / 2
        count = len(self._lengths)
        return _STANDARD_NORMAL.inv_cdf(min(max(rank, 0.5), count - 0.5) / count)

    def _length(self, normal_score: float) -> float:
        """The length at a normal score: the inverse of `_normal_score`, interpolated."""
        count = len(self._lengths)
        place = min(max(_STANDARD_NORMAL.cdf(normal_score) * count - 0.5, 0.0), count - 1.0)
        index = min(int(place), count - 2)
        left, right = self._lengths[index], self._lengths[index + 1]
        return left + (place - index) * (right - left)

    def _noise(self, prompt: Prompt, tokens: float) -> float:
        """A standard normal number that depends on the request alone."""
        digest = hashlib.blake2b(digest_size=8, key=struct.pack("<q", self._seed))
        identity = prompt.hints.get(REQUEST_ID)
        if identity is None:
            digest.update(array("q", prompt.token_ids).tobytes())
            digest.update(struct.pack("<d", tokens))
        else:
            digest.update(str(identity).encode())
        uniform = (int.from_bytes(digest.digest(), "little") + 0.5) / 2**64
        # The doubles nearest to 0 and 1 may be 0 and 1 themselves, where the inverse is infinite.
        return _STANDARD_NORMAL.inv_cdf(min(max(uniform, 1e-15), 1 - 1e-15))


def _certain(tokens: float) -> Prediction:
    return Prediction(score=tokens, expected=tokens, low=tokens, median=tokens, high=tokens)


def _tokens_hint(hints: Mapping[str, object], key: str) -> float:
    value = hints.get(key)
    if value is None:
        raise PredictionError(f"the request carries no {key}")
    # Values sent over HTTP may arrive as strings.
    try:
        tokens = float(value) if isinstance(value, int | float | str) else math.nan
    except (ValueError, OverflowError):
        tokens = math.nan
    if not 0 <= tokens <= MOST_TOKENS:
        raise PredictionError(f"{key} must be a number of tokens, not {one_line(value, repr)}")
    return max(1.0, tokens)  # an answer has at least the token that ends it


def load_predictor(spec: str, tokenizer: str | None = None) -> Predictor:
    """The predictor that a specification names.

    Args:
        spec: `oracle`, `noisy-oracle:TAU`, `prompt-length`, `declared`, `perception-only:URL`, or
            the folder of an artifact written by `lengthwise train`.
        tokenizer: name or path of the tokenizer whose tokens the predictor will see. An artifact
            trained for another one is refused. None skips the check.

    Raises:
        InputError: no such predictor, or an artifact that is damaged, too new or for another
            tokenizer.
    """
    kind, _, argument = spec.partition(":")
    if kind == "noisy-oracle":
        return NoisyOracle(_tau(argument))
    if kind == "perception-only":
        from lengthwise.predict.perception import PerceptionOnly
        from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer

        return PerceptionOnly(argument, load_tokenizer(tokenizer or REFERENCE))
    if spec == Oracle.name:
        return Oracle()
    if spec == PromptLength.name:
        return PromptLength()
    if spec == Declared.name:
        return Declared()
    if spec == Foretold.name:
        return Foretold()
    folder = Path(spec)
    if not folder.exists() and folder.name == spec:
        raise InputError(
            f"{unknown_name('predictor', spec, BUILT_IN)}; and there is no folder {spec!r}"
        )
    return _load_artifact(folder, tokenizer)


def _tau(argument: str) -> float:
    try:
        return float(argument)
    except ValueError:
        raise InputError(
            "noisy-oracle needs the Kendall tau to reach, for example noisy-oracle:0.5"
        ) from None


def _load_artifact(folder: Path, tokenizer: str | None) -> Predictor:
    # Imported here: the baselines need no compiler.
    from lengthwise.predict.artifact import read_artifact
    from lengthwise.predict.kinds import KINDS

    metadata, tensors = read_artifact(folder)
    kind = KINDS.get(metadata.kind)
    if kind is None:
        raise InputError(
            f"{folder} holds a predictor of kind {metadata.kind!r}, this version reads "
            f"{', '.join(KINDS)}: upgrade Lengthwise, or train again"
        )
    predictor = kind.load(folder, metadata, tensors)
    if tokenizer is not None and _fingerprint(tokenizer) != metadata.tokenizer_fingerprint:
        raise InputError(
            f"{folder}: trained for the tokenizer of {metadata.tokenizer}, "
            f"but {tokenizer} has another vocabulary: "
            f"train again with --tokenizer {tokenizer}"
        )
    return predictor


@cache
def _fingerprint(tokenizer: str) -> str:
    """A served tokenizer's fingerprint: read once, for predictors may change many times."""
    from lengthwise.predict.tokenizer import load_tokenizer

    return load_tokenizer(tokenizer).fingerprint
