"""Predictors of the prompt's words, compiled: the default and its baselines, microseconds each."""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.predict.artifact import Metadata, read_artifact, write_artifact
from lengthwise.predict.calibration import calibrate, quantile_lengths, score_at
from lengthwise.predict.features import (
    BUCKETS,
    FEATURES_VERSION,
    FeatureRows,
    find_features,
    new_scratch,
)
from lengthwise.predict.losses import QUANTILES
from lengthwise.predict.model import WordModel, outputs, outputs_of_rows
from lengthwise.predict.model_card import model_card
from lengthwise.predict.prediction import Prediction, Prompt
from lengthwise.predict.weights_folder import Tensors
from lengthwise.predict.words import Template, Vocabulary

LEXICAL_KINDS: Final = ("lexical", "classify", "regress", "quantile")

_MEDIAN: Final = QUANTILES.index(0.5)

Floats = NDArray[np.float64]


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
        write_artifact(folder, self.metadata, tensors, model_card(self.metadata))

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
