"""From a table of prompts and answer lengths, or from logged answers, to a predictor.

A logged answer that ended by itself has its whole length. One that was cut at a limit is at least
as long as what there is of it. Leaving all of those out would hide the longest answers, so the ones
cut above nine in ten of the whole lengths count with what there is: their place in the order is
then wrong by a tenth at most. Answers cut lower, and those that their clients gave up, say too
little.

The predictors of words are the default (`lexical`), and `classify`, `regress`, `quantile`. What
they look at is the same; they differ in the loss, and so in what their outputs mean.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError, unknown_name
from lengthwise.predict.artifact import Metadata
from lengthwise.predict.calibration import (
    calibrate_held_out,
    calibrate_quantiles,
    cross_fit,
    groups_of,
    training_record,
)
from lengthwise.predict.descent import (
    LIST_LENGTH,
    Linear,
    Model,
    Network,
    Schedule,
    SparseRows,
    descend,
    fit_ridge,
    normal_scores,
)
from lengthwise.predict.extract import TokenText, extract_features, load_token_text, token_text_of
from lengthwise.predict.features import FEATURES_VERSION, GROUP_NAMES, GROUPS, FeatureRows
from lengthwise.predict.kinds import Kind, Progress, Recipe, TrainedPredictor, kind_named
from lengthwise.predict.lexical import (
    LEXICAL_KINDS,
    LexicalParameters,
    LexicalPredictor,
    WordModel,
    count_features,
    matrix_of,
    outputs_of_rows,
    scores_of,
)
from lengthwise.predict.losses import (
    QUANTILES,
    Loss,
    drawn_lengths,
    log_lengths,
    loss_named,
    typical_lengths,
)
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset
from lengthwise.workload.length_log import CUT, FULL, Answer
from lengthwise.workload.records import Rejection

LEAST_ROWS: Final = 20  #: fewer prompts teach nothing

_CUT_ABOVE: Final = 0.9  # quantile of whole lengths
_START_SCALE: Final = 2.0  #: of the ridge fit: one normal score of length is e² in odds to ListMLE
_LINEAR: Final = Schedule(epochs=5, rate=3e-4, most_steps=1_000)
_NETWORK: Final = Schedule(epochs=8, rate=3e-3, most_steps=2_000)
_CLASSIFIER_HIDDEN: Final = 32  #: units: a matrix of features × buckets would be too large

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


class TrainingRows(NamedTuple):
    """What `train_on_features` takes."""

    dataset: Dataset  #: lengths, no prompts
    features: FeatureRows
    text: TokenText


def is_full(answer: Answer) -> bool:
    """Whether the answer's whole length is known."""
    return answer.finished == FULL and answer.output_tokens > 0


def teaching(answers: Sequence[Answer]) -> list[Answer]:
    """The answers that a predictor can learn from, in their order."""
    full = [answer.output_tokens for answer in answers if is_full(answer)]
    if not full:
        return []
    least = float(np.quantile(full, _CUT_ABOVE))
    return [
        answer
        for answer in answers
        if is_full(answer) or (answer.finished == CUT and answer.output_tokens >= max(1.0, least))
    ]


def of_one_kind(answers: Sequence[Answer]) -> list[Answer]:
    """The answers whose features mean the same as the newest one's.

    Those of another tokenizer, chat template or version of the features are left out.
    """
    if not answers:
        return []
    wanted = _meaning(answers[-1])
    return [answer for answer in answers if _meaning(answer) == wanted]


def features_of(answers: Sequence[Answer]) -> FeatureRows:
    """The features of each answer's prompt."""
    parts = [answer.features for answer in answers]
    starts = np.zeros(len(parts) + 1, dtype=np.int64)
    np.cumsum([part.size for part in parts], out=starts[1:])
    return FeatureRows(starts, np.concatenate(parts).astype(np.int32))


def lengths_of(answers: Sequence[Answer]) -> NDArray[np.int64]:
    """The answers' lengths in tokens, shape (n,)."""
    return np.array([answer.output_tokens for answer in answers], dtype=np.int64)


def training_rows(folder: Path, answers: Sequence[Answer], damaged: int = 0) -> TrainingRows:
    """Everything that training needs, of the answers that teach.

    Args:
        folder: of the log.
        answers: from it, in its order.
        damaged: lines that could not be read, for the record.

    Raises:
        InputError: none of the answers teaches anything, or their features have no meaning here.
    """
    same = of_one_kind(answers)
    kept = teaching(same)
    if not kept:
        ends = Counter(str(answer.finished) for answer in same)
        listed = ", ".join(f"{count} {reason}" for reason, count in ends.most_common())
        raise InputError(
            f"{folder}: no answer ended by itself, and only those tell how long answers are "
            f"(logged: {listed or 'none'}); serve more, or with a higher max_tokens"
        )
    header = kept[-1].header
    if header["features"] != FEATURES_VERSION:
        raise InputError(
            f"{folder}: logged with features of version {header['features']}, this Lengthwise has "
            f"version {FEATURES_VERSION}: log anew"
        )
    left_out = [Rejection(0, "damaged")] * damaged
    left_out += [Rejection(0, "cut, or of another tokenizer")] * (len(answers) - len(kept))
    cut = sum(not is_full(answer) for answer in kept)
    return TrainingRows(
        Dataset(
            name=str(folder),
            prompts=[],
            lengths=lengths_of(kept),
            samples=None,
            rows=np.arange(1, len(kept) + 1),
            rejected=left_out,
            model=header["model"],
            selection=f"answers that ended by themselves, and {cut} that were cut late",
        ),
        features_of(kept),
        load_token_text(folder / f"tokens-{header['tokens'][:16]}.safetensors", header["tokens"]),
    )


def _meaning(answer: Answer) -> tuple[object, object]:
    return answer.header["tokens"], answer.header["features"]


def train_lexical(
    dataset: Dataset, tokenizer: PromptTokenizer, recipe: Recipe, progress: Progress
) -> LexicalPredictor:
    """Train on a table's prompts; see `train`."""
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
    models that had not seen the row, see `calibration.cross_fit`.

    Args:
        dataset: lengths; its prompts, if it has them, only tell which rows are copies.
        features: of each row, ascending within a row.
        text: what features were extracted with.
        recipe: completed by its kind.
        progress: called now and then.
        started: the monotonic clock when the work began.
    """
    loss = loss_named(recipe.loss or "listmle")
    fit = _Fit(dataset, features, recipe, loss)
    count = dataset.lengths.size
    groups = groups_of(dataset, features)
    outputs = _without_noise(
        cross_fit(
            groups,
            recipe.seed,
            fit.predict,
            lambda part: progress("cross-fitting", 0.8 * part),
        )
    )
    progress("training", 0.8)
    model = fit.model(np.arange(count), recipe.seed)
    factors = np.zeros(0)
    if loss.name == "pinball":
        (calibration, factors), metrics = calibrate_quantiles(dataset, groups, outputs)
    else:
        scores = np.where(np.isnan(outputs[:, 0]), np.nan, scores_of(outputs, loss.name))
        calibration, metrics = calibrate_held_out(dataset, groups, scores)
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


def train(
    dataset: Dataset,
    tokenizer: PromptTokenizer,
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
) -> TrainedPredictor:
    """Train a predictor.

    Args:
        dataset: prompts and lengths. Where a prompt has several answers, models that only order
            learn the geometric mean of their lengths, others one answer drawn in each epoch; all
            of them are calibrated on.
        tokenizer: that of the model to be served.
        recipe: what kind, and how; None: the default kind. The same recipe and rows give the same
            predictor.
        progress: called now and then.

    Raises:
        InputError: an unknown kind or loss, too few rows, or nothing to learn in them.
    """
    kind, recipe = _completed(dataset, recipe)
    return kind.train(dataset, tokenizer, recipe, progress or _silent)


def train_on_features(
    dataset: Dataset,
    features: FeatureRows,
    text: TokenText,
    recipe: Recipe | None = None,
    *,
    progress: Progress | None = None,
) -> LexicalPredictor:
    """Train a predictor of words where the features are known and the prompts need not be.

    Args:
        dataset: lengths; its prompts, if it has them, only tell which rows are copies.
        features: of each row, ascending within a row.
        text: what features were extracted with.
        recipe: as in `train`, of a kind that looks at words.
        progress: as in `train`.

    Raises:
        InputError: as in `train`, or a kind that looks at more than words.
    """
    kind, recipe = _completed(dataset, recipe)
    if kind.name not in LEXICAL_KINDS:
        raise InputError(
            f"kind {kind.name} cannot be trained on hashed features: "
            f"choose from {', '.join(LEXICAL_KINDS)}, or train on a table of prompts"
        )
    return fit_lexical(dataset, features, text, recipe, progress or _silent, time.monotonic())


def _completed(dataset: Dataset, recipe: Recipe | None) -> tuple[Kind, Recipe]:
    """The kind, and the recipe with its choices, if there is something to learn by it."""
    recipe = recipe or Recipe()
    kind = kind_named(recipe.kind)
    recipe = kind.complete(recipe)
    rows = dataset.lengths.size
    if rows < LEAST_ROWS:
        raise InputError(
            f"{dataset.name}: {rows} usable rows, training needs at least {LEAST_ROWS}"
        )
    lengths = dataset.lengths if dataset.samples is None else np.concatenate(dataset.samples)
    shortest, longest = lengths.min(), lengths.max()
    if shortest == longest:
        raise InputError(
            f"{dataset.name}: all answers have {longest} tokens, there is nothing to learn; "
            "check the length column"
        )
    bucket = recipe.bucket or 1
    if shortest // bucket == longest // bucket:
        raise InputError(
            f"{dataset.name}: all answers, {shortest} to {longest} tokens, fall into one bucket of "
            f"{bucket}: give a smaller --bucket"
        )
    return kind, recipe


def _silent(_stage: str, _part: float) -> None:
    """No progress is shown."""
