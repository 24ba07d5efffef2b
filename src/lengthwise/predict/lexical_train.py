"""Training the predictors of words: the default (`lexical`), and `classify`, `regress`, `quantile`.

What they look at is the same; they differ in the loss, and so in what their outputs mean.
"""

from __future__ import annotations

import time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import unknown_name
from lengthwise.predict.artifact import Metadata
from lengthwise.predict.descend import LIST_LENGTH, Model, Schedule, descend
from lengthwise.predict.extract import extract_features
from lengthwise.predict.features import FEATURES_VERSION, GROUP_NAMES, GROUPS, FeatureRows
from lengthwise.predict.held_out import (
    calibrate_held_out,
    calibrate_quantiles,
    cross_fit,
    training_record,
)
from lengthwise.predict.kinds import Progress, Recipe
from lengthwise.predict.lexical import LexicalParameters, LexicalPredictor, scores_of
from lengthwise.predict.linear import Linear, SparseRows, fit_ridge, normal_scores
from lengthwise.predict.losses import (
    QUANTILES,
    Loss,
    drawn_lengths,
    log_lengths,
    loss_named,
    typical_lengths,
)
from lengthwise.predict.model import WordModel, count_features, matrix_of, outputs_of_rows
from lengthwise.predict.network import Network
from lengthwise.predict.token_text import TokenText, token_text_of
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

_START_SCALE: Final = 2.0  #: of the ridge fit: one normal score of length is e² in odds to ListMLE
_LINEAR: Final = Schedule(epochs=5, rate=3e-4, most_steps=1_000)
_NETWORK: Final = Schedule(epochs=8, rate=3e-3, most_steps=2_000)
_CLASSIFIER_HIDDEN: Final = 32  #: units: a matrix of features × buckets would be too large

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


def train_lexical(
    dataset: Dataset, tokenizer: PromptTokenizer, recipe: Recipe, progress: Progress
) -> LexicalPredictor:
    """Train on a table's prompts; see `train.train`."""
    started = time.monotonic()
    text = token_text_of(tokenizer)
    features = extract_features(
        dataset,
        tokenizer,
        text.vocabulary,
        text.template,
        lambda part: progress("prompts", part / 3),
    )
    return fit_lexical(
        dataset,
        features,
        text,
        recipe,
        lambda stage, part: progress(stage, (1 + 2 * part) / 3),
        started,
    )


def fit_lexical(
    dataset: Dataset,
    features: FeatureRows,
    text: TokenText,
    recipe: Recipe,
    progress: Progress,
    started: float,
) -> LexicalPredictor:
    """Train on features that are known already.

    The final model is trained on all rows; calibration and the metrics in the metadata are those of
    models that had not seen the row, see `held_out.cross_fit`.

    Args:
        dataset: lengths; its prompts are not looked at.
        features: of each row, ascending within a row.
        text: what features were extracted with.
        recipe: completed by its kind.
        progress: called now and then.
        started: the monotonic clock when the work began.
    """
    loss = loss_named(recipe.loss or "listmle")
    fit = _Fit(dataset, features, recipe, loss)
    count = dataset.lengths.size
    outputs = _without_noise(
        cross_fit(
            dataset.rows,
            recipe.seed,
            fit.predict,
            lambda part: progress("cross-fitting", 0.8 * part),
        )
    )
    progress("training", 0.8)
    model = fit.model(np.arange(count), recipe.seed)
    factors = np.zeros(0)
    if loss.name == "pinball":
        (calibration, factors), metrics = calibrate_quantiles(dataset, outputs)
    else:
        scores = np.where(np.isnan(outputs[:, 0]), np.nan, scores_of(outputs, loss.name))
        calibration, metrics = calibrate_held_out(dataset, scores)
    progress("training", 1.0)
    return LexicalPredictor(
        Metadata(
            kind=recipe.kind,
            loss=loss.name,
            bucket=recipe.bucket or 1,
            features=FEATURES_VERSION,
            model=dataset.model,
            tokenizer=text.tokenizer,
            tokenizer_fingerprint=text.fingerprint,
            training=training_record(dataset, recipe.seed, started),
            held_out=metrics,
        ),
        LexicalParameters(text.vocabulary, text.template, model, calibration, factors),
    )


class _Fit:
    """Fits models to some of the rows, all by one recipe."""

    def __init__(self, dataset: Dataset, features: FeatureRows, recipe: Recipe, loss: Loss) -> None:
        self._dataset = dataset
        self._features = features
        self._loss = loss
        self._bucket = recipe.bucket or 1
        self._list_length = recipe.list_length or LIST_LENGTH
        self._groups = _chosen_groups(recipe.groups)
        self._typical = typical_lengths(dataset)

    def predict(self, rows: Rows, held_out: Rows, seed: int) -> Floats:
        """The outputs for rows that the model is not trained on, shape (held_out, outputs)."""
        return outputs_of_rows(self._features, held_out, self.model(rows, seed).table())

    def model(self, rows: Rows, seed: int) -> WordModel:
        """A model trained on some rows."""
        buckets, idf = count_features(self._features, rows, self._groups)
        matrix = matrix_of(self._features, rows, buckets, idf)
        empty = WordModel(
            buckets,
            idf,
            weights=np.zeros((buckets.size, 0), dtype=np.float32),
            bias=np.zeros(1),
            embedding=np.zeros((buckets.size, 0), dtype=np.float32),
            hidden_bias=np.zeros(0),
            output=np.zeros((0, 1)),
        )
        if self._loss.name == "cross-entropy":
            network = self._network(matrix, buckets.size, rows, seed)
            return empty._replace(
                bias=_without_noise(network.output_bias),
                embedding=network.embedding,
                hidden_bias=network.hidden_bias,
                output=network.output,
            )
        linear = self._linear(matrix, buckets.size, rows, seed)
        return empty._replace(
            weights=linear.weights.astype(np.float32),
            bias=_without_noise(linear.bias),
            output=np.zeros((0, linear.bias.size)),
        )

    def _linear(self, matrix: SparseRows, columns: int, rows: Rows, seed: int) -> Linear:
        """Linear weights: a ridge fit, then the loss."""
        lengths = self._typical[rows]
        if self._loss.ranks:
            weights = _START_SCALE * fit_ridge(matrix, columns, normal_scores(lengths))
            start = Linear(matrix, weights[:, np.newaxis], np.zeros(1))
        else:
            wanted = log_lengths(lengths, self._bucket)
            weights = fit_ridge(matrix, columns, wanted)
            start = Linear(matrix, weights[:, np.newaxis], np.array([wanted.mean()]))
            if self._loss.name == "pinball":
                missed = wanted - start.outputs(np.arange(rows.size))[:, 0]
                bias = start.bias + np.quantile(missed, QUANTILES)
                start = Linear(matrix, np.repeat(start.weights, len(QUANTILES), axis=1), bias)
        self._descend(start, rows, _LINEAR, seed)
        return start

    def _network(self, matrix: SparseRows, columns: int, rows: Rows, seed: int) -> Network:
        """A network that names buckets."""
        most = np.concatenate(self._dataset.samples or [self._dataset.lengths])
        classes = 1 + int(self._loss.targets(most.astype(np.float64), self._bucket).max())
        network = Network(matrix, columns, _CLASSIFIER_HIDDEN, classes, np.random.default_rng(seed))
        self._descend(network, rows, _NETWORK, seed)
        return network

    def _descend(self, model: Model, rows: Rows, schedule: Schedule, seed: int) -> None:
        random = np.random.default_rng(seed)

        def targets(epoch: int) -> Floats:
            drawn = self._loss.name in ("cross-entropy", "pinball")
            lengths = drawn_lengths(self._dataset, random) if drawn else self._typical
            return self._loss.targets(lengths[rows], self._bucket)

        schedule = schedule._replace(list_length=self._list_length)
        descend(model, self._loss, targets, schedule, seed)


def _without_noise(values: Floats) -> Floats:
    """Without the digits that logarithms and exponentials of another C library change.

    Weights have none of them, being kept in single precision.
    """
    return np.round(values, 6)


def _chosen_groups(names: tuple[str, ...] | None) -> NDArray[np.bool_]:
    """Which of the groups of features are looked at, shape (GROUPS,).

    Raises:
        InputError: there is no such group.
    """
    if names is None:
        return np.ones(GROUPS, dtype=bool)
    for name in names:
        if name not in GROUP_NAMES:
            raise unknown_name("group of features", name, GROUP_NAMES)
    return np.isin(GROUP_NAMES, names)
