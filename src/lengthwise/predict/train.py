"""From a table of prompts and answer lengths to a predictor."""

from __future__ import annotations

import time
from typing import Final

import numpy as np

from lengthwise.errors import InputError
from lengthwise.predict.features import FeatureRows
from lengthwise.predict.kinds import Kind, Progress, Recipe, TrainedPredictor, kind_named
from lengthwise.predict.lexical import LEXICAL_KINDS, LexicalPredictor
from lengthwise.predict.token_text import TokenText
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

LEAST_ROWS: Final = 20  #: fewer prompts teach nothing


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
        dataset: lengths; its prompts are not looked at.
        features: of each row, ascending within a row.
        text: what features were extracted with.
        recipe: as in `train`, of a kind that looks at words.
        progress: as in `train`.

    Raises:
        InputError: as in `train`, or a kind that looks at more than words.
    """
    from lengthwise.predict.lexical_train import fit_lexical

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
