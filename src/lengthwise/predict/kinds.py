"""The kinds of predictors that `lengthwise train` makes, one entry each."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from lengthwise.errors import InputError, unknown_name
from lengthwise.predict.prediction import Predictor

if TYPE_CHECKING:
    from lengthwise.predict.artifact import Metadata, Tensors
    from lengthwise.predict.tokenizer import PromptTokenizer
    from lengthwise.workload.dataset import Dataset

Progress = Callable[[str, float], None]  #: what is being done, and the part done of it all, 0 to 1


@dataclass(frozen=True)
class Recipe:
    """How to train: what `lengthwise train` was asked for. None is the kind's own choice."""

    kind: str = "lexical"
    loss: str | None = None
    bucket: int | None = None  #: tokens; lengths in one bucket count as equal
    list_length: int | None = None  #: prompts of a mini-batch, which is one list to ranking losses
    groups: tuple[str, ...] | None = None  #: of `features.GROUP_NAMES`, to learn from them alone
    seed: int = 0  #: of folds, lists and tie-breaks


class TrainedPredictor(Predictor, Protocol):
    """A predictor that was trained: it can be kept on disk, and knows where it comes from."""

    @property
    def metadata(self) -> Metadata:
        """What stands in its config.json."""

    def save(self, folder: Path) -> None:
        """Write the artifact."""


@dataclass(frozen=True)
class Kind:
    """A kind of predictor, and where its code is: imported when needed, as it may be slow to."""

    name: str
    summary: str  #: one line for model cards
    losses: tuple[str, ...]  #: of `losses.LOSSES`; the first unless another is asked for
    bucket: int  #: tokens, unless another is asked for
    trainer: str  #: "module:function", (dataset, tokenizer, recipe, progress) → TrainedPredictor
    loader: str  #: "module:function", (folder, metadata, tensors) → TrainedPredictor

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with this kind's choices where it has none.

        Raises:
            InputError: a loss that this kind cannot be trained with, or no bucket size.
        """
        from dataclasses import replace

        from lengthwise.predict.losses import loss_named

        loss = loss_named(recipe.loss or self.losses[0]).name
        if loss not in self.losses:
            raise InputError(
                f"kind {self.name} cannot be trained with the loss {loss}: "
                f"choose from {', '.join(self.losses)}"
            )
        bucket = self.bucket if recipe.bucket is None else recipe.bucket
        if bucket < 1:
            raise InputError(f"a bucket of {bucket} tokens holds nothing: give at least 1")
        return replace(recipe, loss=loss, bucket=bucket)

    def train(
        self, dataset: Dataset, tokenizer: PromptTokenizer, recipe: Recipe, progress: Progress
    ) -> TrainedPredictor:
        """Train by a completed recipe; see `train.train`, which checks the rows as well."""
        predictor: TrainedPredictor = _found(self.trainer)(dataset, tokenizer, recipe, progress)
        return predictor

    def load(self, folder: Path, metadata: Metadata, tensors: Tensors) -> TrainedPredictor:
        """The predictor of an artifact.

        Raises:
            InputError: a tensor is missing or damaged.
        """
        predictor: TrainedPredictor = _found(self.loader)(folder, metadata, tensors)
        return predictor


def _found(place: str) -> Any:
    """The function at "module:function"."""
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)


_RANKING: Final = ("listmle", "listnet", "pairwise")

KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind(
            "lexical",
            "words of the prompt, linear and a small hidden layer, trained to order",
            _RANKING,
            1,
            "lengthwise.predict.lexical_train:train_lexical",
            "lengthwise.predict.lexical:load_lexical",
        ),
        Kind(
            "classify",
            "words of the prompt, trained to name the bucket of the length",
            ("cross-entropy",),
            10,
            "lengthwise.predict.lexical_train:train_lexical",
            "lengthwise.predict.lexical:load_lexical",
        ),
        Kind(
            "regress",
            "words of the prompt, trained to give the logarithm of the length",
            ("huber",),
            1,
            "lengthwise.predict.lexical_train:train_lexical",
            "lengthwise.predict.lexical:load_lexical",
        ),
        Kind(
            "quantile",
            "words of the prompt, trained to give three quantiles of the length",
            ("pinball",),
            1,
            "lengthwise.predict.lexical_train:train_lexical",
            "lengthwise.predict.lexical:load_lexical",
        ),
    )
}


def kind_named(name: str) -> Kind:
    """The kind of a name.

    Raises:
        InputError: there is none; the nearest name is suggested.
    """
    if name not in KINDS:
        raise unknown_name("kind of predictor", name, KINDS)
    return KINDS[name]
