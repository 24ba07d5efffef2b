"""Predictors of the prompt's words, compiled: the default and its baselines, microseconds each.

The model behind them goes from hashed features to outputs:

    x = idf, each group of a prompt's features scaled to length 1
    outputs = bias + x · weights + max(0, hidden_bias + x · embedding) · output

Rare features weigh more (inverse document frequency), and a long prompt does not outweigh a short
one. Features that fewer than two training prompts have, or that all have, are ignored. Either part
may be missing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled
from lengthwise.errors import InputError
from lengthwise.predict.artifact import PREDICTOR, Metadata, Tensors, read_artifact
from lengthwise.predict.calibration import calibrate, quantile_lengths, score_at
from lengthwise.predict.descent import SparseRows
from lengthwise.predict.features import (
    BUCKETS,
    FEATURES_VERSION,
    GROUPS,
    FeatureRows,
    Template,
    Vocabulary,
    find_features,
    new_scratch,
)
from lengthwise.predict.kinds import model_card
from lengthwise.predict.losses import QUANTILES
from lengthwise.predict.prediction import Prediction, Prompt

LEXICAL_KINDS: Final = ("lexical", "classify", "regress", "quantile")
LEAST_PROMPTS: Final = 2  #: training prompts that must have a feature for it to count

_MEDIAN: Final = QUANTILES.index(0.5)

Floats = NDArray[np.float64]


class WordModel(NamedTuple):
    """What is learnt."""

    buckets: NDArray[np.int32]  #: shape (features,), those that count, ascending
    idf: NDArray[np.float32]  #: shape (features,), inverse document frequency
    weights: NDArray[np.float32]  #: shape (features, outputs), or (features, 0) without them
    bias: NDArray[np.float64]  #: shape (outputs,)
    embedding: NDArray[np.float32]  #: shape (features, hidden); hidden is 0 without them
    hidden_bias: NDArray[np.float64]  #: shape (hidden,)
    output: NDArray[np.float64]  #: shape (hidden, outputs)

    def table(self) -> ModelTable:
        """The same as it is looked up in."""
        places = np.full(BUCKETS, -1, dtype=np.int32)
        places[self.buckets] = np.arange(self.buckets.size, dtype=np.int32)
        idf = self.idf[:, np.newaxis]
        rows = np.hstack([idf**2, idf * self.weights, idf * self.embedding])
        return ModelTable(
            places.reshape(GROUPS, -1),
            np.ascontiguousarray(rows, dtype=np.float32),
            self.bias,
            self.hidden_bias,
            self.output,
        )


class ModelTable(NamedTuple):
    """What inference reads."""

    places: NDArray[np.int32]  #: shape (groups, buckets of a group): the row of each, −1 for none
    rows: NDArray[np.float32]  #: by feature: idf², idf · weights, idf · embedding
    bias: NDArray[np.float64]
    hidden_bias: NDArray[np.float64]
    output: NDArray[np.float64]


def count_features(
    features: FeatureRows, rows: NDArray[np.int64], groups: NDArray[np.bool_]
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Which features count, and how rare they are.

    Args:
        features: of all prompts.
        rows: shape (n,), which prompts to count.
        groups: shape (GROUPS,), which groups of features to use.

    Returns:
        buckets and idf, as in `WordModel`.
    """
    prompts = np.zeros(BUCKETS, dtype=np.int64)
    _count_prompts(features.starts, features.buckets, rows, prompts)
    counts = (prompts >= LEAST_PROMPTS) & (prompts < rows.size)
    wanted = counts.reshape(GROUPS, -1) & groups[:, np.newaxis]
    buckets = np.flatnonzero(wanted).astype(np.int32)
    idf = (np.log((1 + rows.size) / (1 + prompts[buckets])) + 1).astype(np.float32)
    return buckets, idf


def matrix_of(
    features: FeatureRows,
    rows: NDArray[np.int64],
    buckets: NDArray[np.int32],
    idf: NDArray[np.float32],
) -> SparseRows:
    """x of some prompts, one column for each of `buckets`."""
    columns = np.full(BUCKETS, -1, dtype=np.int32)
    columns[buckets] = np.arange(buckets.size, dtype=np.int32)
    return _normalised(features.starts, features.buckets, rows, columns.reshape(GROUPS, -1), idf)


def outputs_of_rows(features: FeatureRows, rows: NDArray[np.int64], table: ModelTable) -> Floats:
    """`outputs` of several prompts, by their place in `features`; shape (rows, outputs)."""
    return _outputs_of_rows(features.starts, features.buckets, rows, *table)


@compiled
def _bits(size: int) -> int:
    """The binary logarithm of a power of two.

    Sizes come with the tables: compiled functions are cached, and would not notice a change of
    constants in another file.
    """
    bits = 0
    while (1 << bits) < size:
        bits += 1
    return bits


@compiled
def outputs(
    buckets: NDArray[np.int32],
    places: NDArray[np.int32],
    rows: NDArray[np.float32],
    bias: Floats,
    hidden_bias: Floats,
    output: Floats,
) -> Floats:
    """The outputs for one prompt, shape (outputs,).

    Args:
        buckets: shape (n,), its distinct features.
        places: with what follows: see `ModelTable`.
        rows: see there.
        bias: see there.
        hidden_bias: see there.
        output: see there.
    """
    groups = places.shape[0]
    bits = _bits(places.shape[1])
    flat = places.reshape(-1)
    width = rows.shape[1]
    sums = np.zeros((groups, width), dtype=np.float32)
    for bucket in buckets:
        place = flat[bucket]
        if place >= 0:
            group = bucket >> bits
            for column in range(width):
                sums[group, column] += rows[place, column]
    totals = np.zeros(width)
    for group in range(groups):
        if sums[group, 0] > 0:
            scale = 1 / np.sqrt(sums[group, 0])
            for column in range(1, width):
                totals[column] += sums[group, column] * scale
    hidden = hidden_bias.size
    direct = width - 1 - hidden
    result = bias.copy()
    for column in range(direct):
        result[column] += totals[1 + column]
    for unit in range(hidden):
        state = totals[1 + direct + unit] + hidden_bias[unit]
        if state > 0:
            for column in range(result.size):
                result[column] += state * output[unit, column]
    return result


@compiled
def _outputs_of_rows(
    starts: NDArray[np.int64],
    buckets: NDArray[np.int32],
    wanted: NDArray[np.int64],
    places: NDArray[np.int32],
    rows: NDArray[np.float32],
    bias: Floats,
    hidden_bias: Floats,
    output: Floats,
) -> Floats:
    results = np.empty((wanted.size, bias.size))
    for index in range(wanted.size):
        row = wanted[index]
        mine = buckets[starts[row] : starts[row + 1]]
        results[index] = outputs(mine, places, rows, bias, hidden_bias, output)
    return results


@compiled
def _count_prompts(
    starts: NDArray[np.int64],
    buckets: NDArray[np.int32],
    rows: NDArray[np.int64],
    prompts: NDArray[np.int64],
) -> None:
    """Add to `prompts`, by bucket, how many of the rows have it."""
    for row in rows:
        for entry in range(starts[row], starts[row + 1]):
            prompts[buckets[entry]] += 1


@compiled
def _normalised(
    starts: NDArray[np.int64],
    buckets: NDArray[np.int32],
    rows: NDArray[np.int64],
    columns: NDArray[np.int32],
    idf: NDArray[np.float32],
) -> SparseRows:
    """The matrix of some rows; `columns` has the column of each bucket by group, −1 for none."""
    groups = columns.shape[0]
    bits = _bits(columns.shape[1])
    flat = columns.reshape(-1)
    most = 0
    for row in rows:
        most += starts[row + 1] - starts[row]
    own_starts = np.zeros(rows.size + 1, dtype=np.int64)
    kept = np.empty(most, dtype=np.int32)
    values = np.empty(most, dtype=np.float32)
    squares = np.empty(groups)
    at = 0
    for place in range(rows.size):
        row = rows[place]
        squares[:] = 0.0
        for entry in range(starts[row], starts[row + 1]):
            bucket = buckets[entry]
            column = flat[bucket]
            if column >= 0:
                squares[bucket >> bits] += idf[column] ** 2
        for entry in range(starts[row], starts[row + 1]):
            bucket = buckets[entry]
            column = flat[bucket]
            if column >= 0:
                kept[at] = column
                values[at] = idf[column] / np.sqrt(squares[bucket >> bits])
                at += 1
        own_starts[place + 1] = at
    return SparseRows(own_starts, kept[:at].copy(), values[:at].copy())


class LexicalParameters(NamedTuple):
    """model.safetensors."""

    vocabulary: Vocabulary
    template: Template
    model: WordModel
    calibration: Floats  #: see `calibration.fit_calibration`
    factors: Floats  #: see `calibration.fit_factors`; shape (0,) where scores are calibrated


class LexicalPredictor:
    """Predicts from the words of the prompt; trained by `lengthwise train`.

    One object serves one thread.
    """

    def __init__(self, metadata: Metadata, parameters: LexicalParameters) -> None:
        """A predictor of what was learnt; `load` reads one from disk."""
        self.metadata = metadata
        self.name = metadata.kind
        self.parameters = parameters
        self._table = parameters.model.table()
        self._scratch = new_scratch()

    @classmethod
    def load(cls, folder: Path) -> LexicalPredictor:
        """Read an artifact.

        Raises:
            InputError: there is none, it is damaged, of another kind, or of a newer version.
        """
        metadata, tensors = read_artifact(folder)
        if metadata.kind not in LEXICAL_KINDS:
            raise InputError(f"{folder} holds a predictor of kind {metadata.kind!r}: not of words")
        return load_lexical(folder, metadata, tensors)

    def save(self, folder: Path) -> None:
        """Write the artifact: config.json, model.safetensors and README.md."""
        vocabulary, template, model, calibration, factors = self.parameters
        tensors = {
            "vocabulary.flat": vocabulary.flat,
            "vocabulary.offsets": vocabulary.offsets,
            "template.before": template.before,
            "template.after": template.after,
            **{f"model.{name}": tensor for name, tensor in model._asdict().items()},
            "calibration": calibration,
            "factors": factors,
        }
        PREDICTOR.write(folder, self.metadata, tensors, model_card(self.metadata))

    def predict(self, prompt: Prompt) -> Prediction:
        """The prediction for any token ids; those that the tokenizer does not know are skipped."""
        parameters, scratch = self.parameters, self._scratch
        found = find_features(
            prompt.token_ids, parameters.vocabulary, parameters.template, scratch, prompt.hints
        )
        said = outputs(scratch.buckets[:found], *self._table)
        score = self._score(said)
        expected, low, median, high = calibrate(score, parameters.calibration)
        if parameters.factors.size:
            low, median, high = quantile_lengths(said[np.newaxis], parameters.factors)[0].tolist()
        return Prediction(score, expected, low, median, high)

    def score_at(self, expected: float) -> float:
        """The score of prompts that are expected to take so many tokens."""
        return score_at(expected, self.parameters.calibration)

    def score_rows(self, features: FeatureRows) -> Floats:
        """The scores of prompts whose features are known already, shape (rows,)."""
        rows = np.arange(features.starts.size - 1)
        return scores_of(outputs_of_rows(features, rows, self._table), self.metadata.loss)

    def _score(self, said: Floats) -> float:
        """As `scores_of`, of one prompt."""
        if self.metadata.loss == "cross-entropy":
            return float(np.argmax(said))
        return float(said[_MEDIAN if self.metadata.loss == "pinball" else 0])


def scores_of(said: Floats, loss: str) -> Floats:
    """One score for each prompt, smaller = shorter.

    Args:
        said: shape (rows, outputs).
        loss: what the model was trained by. Of a classifier's buckets the score is the number of
            the likeliest, as published; of quantiles it is the median.

    Returns:
        shape (rows,).
    """
    if loss == "cross-entropy":
        likeliest: Floats = np.argmax(said, axis=1).astype(np.float64)
        return likeliest
    return said[:, _MEDIAN if loss == "pinball" else 0].copy()


def load_lexical(folder: Path, metadata: Metadata, tensors: Tensors) -> LexicalPredictor:
    """The predictor of an artifact that was read.

    Raises:
        InputError: it was trained on other features, or a tensor is missing or damaged.
    """
    if metadata.features != FEATURES_VERSION:
        raise InputError(
            f"{folder} was trained on features of version {metadata.features}, this Lengthwise "
            f"extracts version {FEATURES_VERSION}: train again"
        )
    parameters = LexicalParameters(
        Vocabulary(
            tensors.take("vocabulary.flat", np.uint8), tensors.take("vocabulary.offsets", np.int64)
        ),
        Template(
            tensors.take("template.before", np.uint8), tensors.take("template.after", np.uint8)
        ),
        _model(tensors),
        tensors.take("calibration", np.float64, 2),
        tensors.take("factors", np.float64),
    )
    wrong = _inconsistency(parameters)
    if wrong:
        raise tensors.damaged(wrong)
    return LexicalPredictor(metadata, parameters)


def _model(tensors: Tensors) -> WordModel:
    return WordModel(
        buckets=tensors.take("model.buckets", np.int32),
        idf=tensors.take("model.idf", np.float32),
        weights=tensors.take("model.weights", np.float32, 2),
        bias=tensors.take("model.bias", np.float64),
        embedding=tensors.take("model.embedding", np.float32, 2),
        hidden_bias=tensors.take("model.hidden_bias", np.float64),
        output=tensors.take("model.output", np.float64, 2),
    )


def _inconsistency(parameters: LexicalParameters) -> str | None:
    """What compiled code, which checks no bounds, could not survive."""
    flat, offsets = parameters.vocabulary
    if (
        offsets.size < 1
        or offsets[0] != 0
        or offsets[-1] != flat.size
        or np.any(np.diff(offsets) < 0)
    ):
        return "the vocabulary's offsets do not fit its bytes"
    model = parameters.model
    features, count, hidden = model.buckets.size, model.bias.size, model.hidden_bias.size
    if (
        model.idf.size != features
        or model.weights.shape not in ((features, count), (features, 0))
        or model.embedding.shape != (features, hidden)
        or model.output.shape != (hidden, count)
        or count < 1
    ):
        return "the model's tensors do not fit one another"
    if features and (model.buckets.min() < 0 or model.buckets.max() >= BUCKETS):
        return "a feature is out of range"
    calibration, factors = parameters.calibration, parameters.factors
    if calibration.shape[0] < 1 or calibration.shape[1] != 5:
        return "the calibration table has another shape than it should"
    if factors.size and (factors.size, count) != (len(QUANTILES), len(QUANTILES)):
        return "there is not one factor for each quantile"
    return None
