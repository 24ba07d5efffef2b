"""Predictors as others published them, to compare with: Clairvoyant and TIE.

Clairvoyant (arXiv 2606.07248, github.com/Aravind0403/clairvoyant-scheduler): 19 features of the
prompt, boosted trees that name one of three classes of length, and an order by the chance of the
longest. TIE (arXiv 2604.00499, github.com/Hyzheng-code/TIE): a log-t law of each prompt's answers
and an order by its mean, inflated by its tail. There a DeBERTa tells the law's two parameters; here
a ridge fit on our own features does, since what is compared is what the law is worth.
"""

from __future__ import annotations

import re
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.predict.descent import fit_ridge
from lengthwise.predict.extract import TokenText, extract_features, token_text_of
from lengthwise.predict.features import GROUPS, FeatureRows
from lengthwise.predict.lexical import count_features, matrix_of
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

Floats = NDArray[np.float64]

CLASSES: Final = (200, 800)  #: tokens from which answers are medium, and long
_ROUNDS, _DEPTH, _RATE, _SEED = 300, 6, 0.1, 42
_VERBS: Final = (  # the first that is there
    "summarize",
    "explain",
    "compare",
    "translate",
    "generate",
    "implement",
    "debug",
    "refactor",
    "list",
    "write",
    "describe",
    "define",
    "what",
    "how",
    "why",
)
_KNOWN: Final = tuple(verb for verb in _VERBS if verb not in ("translate", "debug", "refactor"))
_INFLECTED: Final = ("summarize", "compare", "translate", "generate", "describe", "define")
_CODE: Final = frozenset(
    [
        "code",
        "function",
        "def",
        "class",
        "script",
        "program",
        "implement",
        "algorithm",
        "debug",
        "refactor",
        "import",
        "variable",
        "loop",
        "recursion",
        "api",
        "sql",
        "regex",
    ]
)
_SHORT: Final = re.compile(
    r"\bin\s+\d+\s+(?:words?|sentences?)\b|\bno\s+more\s+than\s+\d+|\bunder\s+\d+\s+words?\b"
    r"|\b(?:briefly|concisely|shortly)\b|\bone[\s-]liner\b|\btl;?dr\b",
    re.IGNORECASE,
)
_FORMATS: Final = (
    "list",
    "table",
    "bullet",
    "step by step",
    "enumerate",
    "outline",
    "numbered",
    "format",
    "structure",
)
_CLAUSES: Final = (",", ";", " and ", " but ", " because ")

_DIGITS: Final = 4  # of a score, in tokens, after the point
NU: Final = 3.5  #: degrees of freedom of TIE's law
LONGEST: Final = 2048.0  #: tokens at which it is cut
BETAS: Final = (0.1, 0.5)  #: between which the tail's weight moves
_QUANTILES: Final = 1000  # points at which a law is looked at
_LEAST_SIGMA: Final = 0.05


def clairvoyant_features(prompt: str, tokens: int) -> list[float]:
    """The 19 features: six numbers, and which of 12 verbs it has, or another."""
    text = prompt.lower()
    verb = next((verb for verb in _VERBS if _has(verb, text)), None)
    return [
        float(tokens),
        float(bool(set(re.findall(r"\w+", text)) & _CODE)),
        float(bool(_SHORT.search(text))),
        float(prompt.rstrip().endswith("?")),
        float(any(word in text for word in _FORMATS)),
        float(sum(text.count(part) for part in _CLAUSES)),
        *(float(verb == known) for known in _KNOWN),
        float(verb not in _KNOWN),
    ]


def _has(verb: str, text: str) -> bool:
    pattern = f"{verb[:-1]}(?:e|ing)" if verb in _INFLECTED else verb
    return bool(re.search(rf"\b{pattern}\b", text))


class Clairvoyant:
    """Boosted trees on the 19 features, as published, or of the length instead of its class."""

    def __init__(self, dataset: Dataset, tokenizer: PromptTokenizer, *, classes: bool) -> None:
        """Train on a table.

        Raises:
            InputError: xgboost is not installed.
        """
        try:
            import xgboost
        except ImportError:
            raise InputError("Clairvoyant's trees need xgboost: pip install xgboost-cpu") from None
        self._tokenizer, self._xgboost = tokenizer, xgboost
        self.rows = len(dataset.prompts)  #: that it was trained on
        options: dict[str, Any] = {"max_depth": _DEPTH, "eta": _RATE, "seed": _SEED, "nthread": 1}
        if classes:
            # Of answers that are cut at 512 tokens none is long: the longest class that there is.
            kinds, wanted = np.unique(np.digitize(dataset.lengths, CLASSES), return_inverse=True)
            options |= {"objective": "multi:softprob", "num_class": kinds.size}
        else:
            wanted = np.log(np.maximum(1, dataset.lengths))
            options["objective"] = "reg:squarederror"
        table = xgboost.DMatrix(self._features(dataset.prompts), label=wanted)
        self._trees = xgboost.train(options, table, num_boost_round=_ROUNDS)

    def scores(self, prompts: list[str]) -> Floats:
        """One for each prompt, shape (n,): smaller = shorter."""
        found = self._trees.predict(self._xgboost.DMatrix(self._features(prompts)))
        chance = found[:, -1] if found.ndim == 2 else found  # of the longest class
        return np.asarray(chance, np.float64)

    def _features(self, prompts: list[str]) -> Floats:
        counts = self._tokenizer.count_tokens(prompts)
        pairs = zip(prompts, counts, strict=True)
        return np.array([clairvoyant_features(text, count) for text, count in pairs])


class LogT(NamedTuple):
    """Laws of n answers: log X is Student's t with NU degrees of freedom, moved and stretched."""

    mu: Floats  #: shape (n,)
    sigma: Floats  #: shape (n,)

    def mean_and_tail(self) -> tuple[Floats, Floats]:
        """The mean, and that of the longest tenth, of answers that are cut; shape (n,) each."""
        from scipy.stats import t

        # Closer to one another the nearer to 1: the law's tail is so heavy that it has no mean.
        steps = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        places, shares = 1 - (1 - steps) ** 4, 4 * (1 - steps) ** 3 / _QUANTILES
        in_tail = shares * (places > 0.9)
        logs = self.mu[:, np.newaxis] + self.sigma[:, np.newaxis] * t.ppf(places, NU)
        lengths = np.minimum(np.exp(np.minimum(logs, 20.0)), LONGEST)
        # Not by a product of matrices, whose last digit is the machine's.
        mean, tail = (np.add.reduce(lengths * each, axis=1) for each in (shares, in_tail))
        return mean, tail / in_tail.sum()

    def scores(self, beta: Floats | float) -> Floats:
        """TIE: the mean plus `beta` times the tail's, shape (n,).

        Processors differ in the last digits of a logarithm. So many are left out as do not matter,
        and requests that are alike come in the order of arrival on all of them.
        """
        mean, tail = self.mean_and_tail()
        return np.round(mean + beta * tail, _DIGITS)


class LogTPredictor:
    """Tells the law of a prompt's answers from its words."""

    def __init__(self, dataset: Dataset, tokenizer: PromptTokenizer) -> None:
        """Train on prompts with several answers each.

        Raises:
            InputError: there is one answer for each, from which no spread can be learnt.
        """
        if dataset.samples is None:
            raise InputError(f"{dataset.name}: TIE's law needs several answers to each prompt")
        self._tokenizer, self._text = tokenizer, token_text_of(tokenizer)
        self._features = _features(dataset, tokenizer, self._text)
        rows = np.arange(dataset.lengths.size)
        self._buckets, self._idf = count_features(self._features, rows, np.ones(GROUPS, bool))
        matrix = matrix_of(self._features, rows, self._buckets, self._idf)
        logs = [np.log(np.maximum(1, lengths)) for lengths in dataset.samples]
        spread = np.array([each.std(ddof=1) for each in logs]) * np.sqrt((NU - 2) / NU)
        self._fits = [
            (fit_ridge(matrix, self._buckets.size, wanted), wanted.mean())
            for wanted in (
                np.array([each.mean() for each in logs]),
                np.log(np.maximum(_LEAST_SIGMA, spread)),
            )
        ]

    def laws(self, dataset: Dataset) -> LogT:
        """The law of each prompt's answers."""
        from scipy.sparse import csr_array

        features = _features(dataset, self._tokenizer, self._text)
        rows = np.arange(features.starts.size - 1)
        found = matrix_of(features, rows, self._buckets, self._idf)
        matrix = csr_array(
            (found.values, found.columns, found.starts), (rows.size, self._buckets.size)
        )
        mu, log_sigma = (matrix @ weights + middle for weights, middle in self._fits)
        return LogT(np.asarray(mu), np.exp(np.asarray(log_sigma)))


def _features(dataset: Dataset, tokenizer: PromptTokenizer, text: TokenText) -> FeatureRows:
    return extract_features(dataset, tokenizer, text.vocabulary, text.template, lambda part: None)


def moving_beta(waiting: NDArray[np.int64], slots: int) -> Floats:
    """The tail's weight for requests that find so many waiting, shape (n,)."""
    return np.clip(0.1 * waiting / slots, *BETAS)
