"""The kinds of predictors that `lengthwise train` makes, one entry each, and their README.md.

The README.md of a predictor says what it is, what it learnt from, and how good it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from lengthwise.errors import InputError, unknown_name
from lengthwise.predict.encoder import EncoderSettings, Head, Precision
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
    backbone: str | None = None  #: pretrained model to fine-tune: folder, or name on the hub
    head: Head = Head.LAST  #: what of a backbone's states is looked at
    precision: Precision = Precision.FP32  #: in which a backbone predicts
    epochs: int | None = None  #: of fine-tuning
    learning_rate: float | None = None  #: of fine-tuning


class TrainedPredictor(Predictor, Protocol):
    """A predictor that was trained: it can be kept on disk, and knows where it comes from."""

    @property
    def metadata(self) -> Metadata:
        """What stands in its config.json."""

    def save(self, folder: Path) -> None:
        """Write the artifact."""


@dataclass(frozen=True)
class Kind:
    """A kind of predictor: what it is trained for, and on what."""

    name: str
    summary: str  #: for model cards
    losses: tuple[str, ...]  #: of `losses.LOSSES`; the first unless another is asked for
    bucket: int  #: tokens, unless another is asked for
    reads: tuple[str, ...]  #: of `_CODE`: what it can be trained on

    def complete(self, recipe: Recipe) -> Recipe:
        """The recipe with this kind's choices where it has none.

        Raises:
            InputError: a loss that this kind cannot be trained with, no bucket size, or a backbone
                where it has no use for one, or none where it needs one.
        """
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
        if recipe.backbone is None and WORDS not in self.reads:
            raise InputError(
                f"kind {self.name} fine-tunes a pretrained model: name one with --backbone, a "
                "folder or a name on the hub, for example facebook/opt-125m"
            )
        if recipe.backbone is not None and BACKBONE not in self.reads:
            others = ", ".join(kind.name for kind in KINDS.values() if BACKBONE in kind.reads)
            raise InputError(f"kind {self.name} has no backbone: choose from {others}")
        return replace(recipe, loss=loss, bucket=bucket)

    def train(
        self, dataset: Dataset, tokenizer: PromptTokenizer, recipe: Recipe, progress: Progress
    ) -> TrainedPredictor:
        """Train by a completed recipe; see `train.train`, which checks the rows as well."""
        code = _CODE[WORDS if recipe.backbone is None else BACKBONE]
        predictor: TrainedPredictor = _found(code.trainer)(dataset, tokenizer, recipe, progress)
        return predictor

    def load(self, folder: Path, metadata: Metadata, tensors: Tensors) -> TrainedPredictor:
        """The predictor of an artifact.

        Raises:
            InputError: a tensor is missing or damaged.
        """
        code = _CODE[BACKBONE if BACKBONE in metadata.settings else WORDS]
        predictor: TrainedPredictor = _found(code.loader)(folder, metadata, tensors)
        return predictor


class _Code(NamedTuple):
    """Where code is: "module:function", imported when needed, as it may be slow to."""

    trainer: str  #: (dataset, tokenizer, recipe, progress) → TrainedPredictor
    loader: str  #: (folder, metadata, tensors) → TrainedPredictor


def _found(place: str) -> Any:
    """The function at "module:function"."""
    module, _, function = place.partition(":")
    return getattr(importlib.import_module(module), function)


WORDS: Final = "words"  #: of the prompt
BACKBONE: Final = "backbone"  #: its text, by a pretrained model; its name in `Metadata.settings`

_CODE: Final = {
    WORDS: _Code(
        "lengthwise.predict.train:train_lexical",
        "lengthwise.predict.lexical:load_lexical",
    ),
    BACKBONE: _Code(
        "lengthwise.predict.encoder.predictor:train_encoder",
        "lengthwise.predict.encoder.predictor:load_encoder",
    ),
}

_RANKING: Final = ("listmle", "listnet", "pairwise")

KINDS: Final = {
    kind.name: kind
    for kind in (
        Kind("lexical", "trained to order", _RANKING, 1, (WORDS,)),
        Kind("encoder", "trained to order", _RANKING, 10, (BACKBONE,)),
        Kind(
            "classify",
            "trained to name the bucket of the length",
            ("cross-entropy",),
            10,
            (WORDS, BACKBONE),
        ),
        Kind(
            "regress",
            "trained to give the logarithm of the length",
            ("huber",),
            1,
            (WORDS, BACKBONE),
        ),
        Kind(
            "quantile",
            "trained to give three quantiles of the length",
            ("pinball",),
            1,
            (WORDS,),
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


def recipe_of(metadata: Metadata) -> Recipe:
    """How an artifact was trained."""
    recipe = Recipe(metadata.kind, metadata.loss, metadata.bucket, seed=metadata.training.seed)
    if BACKBONE not in metadata.settings:
        return recipe
    settings = EncoderSettings.model_validate(metadata.settings)
    return replace(recipe, **settings.model_dump(exclude={"window"}))


def model_card(metadata: Metadata) -> str:
    """The README.md of a predictor: a model card in Markdown."""
    training, held_out = metadata.training, metadata.held_out
    backbone = metadata.settings.get(BACKBONE)
    reads = (
        "words of the prompt" if backbone is None else f"pretrained model {backbone}, fine-tuned"
    )
    tau = "undefined" if held_out.tau is None else f"{held_out.tau:.3f}"
    return f"""# Predictor of answer lengths

Predicts from a prompt how many tokens the answer of {metadata.model or "one model"} will have.
Written by `lengthwise train`; read by `lengthwise serve --predictor DIR`.

| | |
|---|---|
| Kind | {metadata.kind}: {reads}, {kind_named(metadata.kind).summary} |
| Loss | {metadata.loss}, lengths in buckets of {metadata.bucket} |
| Target model | {metadata.model or "not named in the table"} |
| Tokenizer | {metadata.tokenizer}, vocabulary `{metadata.tokenizer_fingerprint[:16]}…` |
| Trained on | {training.dataset}, {training.selection}: {training.rows} prompts, \
{training.answers} answers, {training.rejected_rows} malformed rows left out |
| Trained at | {training.trained_at}, in {training.seconds:.1f} s, seed {training.seed} |
| Kendall tau-b, held out | {tau} ({held_out.rows} prompts) |
| Mean absolute error, held out | {held_out.mae:.1f} tokens |
| Answers between the 10 % and 90 % quantile, held out | {held_out.coverage_80:.1%} |

"Held out" is within the training rows: each was scored by a model that had not seen it. Measure on
rows of your own with `lengthwise evaluate`.

**Use.** It orders requests by expected length, and gives its mean and its 10 %, 50 % and 90 %
quantiles. It knows what was in the prompts above: those unlike them rank near the middle, and their
quantiles are less reliable. Train again when the model, its system prompt or the traffic changes.

**Contents.** No prompts are stored.
"""
