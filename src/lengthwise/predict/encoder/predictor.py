"""The predictor with a pretrained backbone, and its fine-tuning.

It is slow, so serving asks it beside the engine.

A backbone is fine-tuned to order prompts by the length of their answers, as published in "Efficient
LLM Scheduling by Learning to Rank" (arXiv 2408.15792; the authors' trainer.py and train.sh): Adam
with a learning rate of 2e-5 and weight decay 0.01 for five epochs, shuffled mini-batches of 32
prompts that are one list each, no schedule and no clipping; the last tenth of the rows is held out.
It is trained in single precision here.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lengthwise.errors import LengthwiseError, missing_extra
from lengthwise.predict.artifact import PREDICTOR, Metadata, Tensors
from lengthwise.predict.calibration import (
    calibrate_held_out,
    calibrate_many,
    groups_of,
    hold_out,
    score_at,
    training_record,
)
from lengthwise.predict.encoder import EncoderSettings
from lengthwise.predict.extract import chunks_of, requests_of, vocabulary_of
from lengthwise.predict.features import Vocabulary
from lengthwise.predict.kinds import Progress, Recipe, model_card
from lengthwise.predict.lexical import scores_of
from lengthwise.predict.losses import Loss, loss_named, typical_lengths
from lengthwise.predict.prediction import Prediction, Prompt
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

if TYPE_CHECKING:
    from lengthwise.predict.encoder.backbone import Encoder


BACKBONE: Final = "backbone"  #: folder within the artifact
READ_TOKENS: Final = 8_192  #: of a prompt, its end: four times what a backbone usually reads

EPOCHS: Final = 5  #: as published
LEARNING_RATE: Final = 2e-5  #: as published
WEIGHT_DECAY: Final = 0.01  #: as published
LIST_LENGTH: Final = 32  #: as published

_HELD_OUT_SHARE: Final = 0.1  #: as published
_LEAST_HELD_OUT: Final = 200  #: rows, where that is no more than half of them: quantiles need some


class PromptText:
    """Rebuilds prompts as text, chat template included, as the paper does."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        """The vocabulary is that of the served model's tokenizer."""
        self._flat = vocabulary.flat.tobytes()
        self._offsets: list[int] = vocabulary.offsets.tolist()

    def read(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt's last 8,192 tokens.

        Special tokens leave no trace, nor do ids outside of the vocabulary. Bytes that are not
        UTF-8 read as U+FFFD.
        """
        flat, offsets = self._flat, self._offsets
        tokens = len(offsets) - 1
        parts = (
            flat[offsets[index] : offsets[index + 1]]
            for index in token_ids[-READ_TOKENS:]
            if 0 <= index < tokens
        )
        return b"".join(parts).decode(errors="replace")


class EncoderPredictor:
    """Predicts with a fine-tuned language model; trained by `lengthwise train --backbone`.

    Making one is quick: the backbone is loaded for the first prediction, so that a process that
    leaves predicting to another never holds it.
    """

    def __init__(
        self,
        metadata: Metadata,
        vocabulary: Vocabulary,
        calibration: NDArray[np.float64],
        trained: Callable[[], Encoder],
    ) -> None:
        """A predictor of what was learnt; `load_encoder` reads one from disk.

        Args:
            metadata: its `settings` are those of `EncoderSettings`.
            vocabulary: of the served model's tokenizer.
            calibration: see `calibration.fit_calibration`.
            trained: gives the encoder, in single precision.
        """
        self.metadata = metadata
        self.name = metadata.kind
        self.settings = EncoderSettings.model_validate(metadata.settings)
        self._vocabulary = vocabulary
        self._calibration = calibration
        self._trained = trained

    def predict(self, prompt: Prompt) -> Prediction:
        """The prediction for any token ids; those that the tokenizer does not know are skipped."""
        return self.predict_many([prompt])[0]

    def predict_many(self, prompts: Sequence[Prompt]) -> list[Prediction]:
        """The predictions of several prompts, computed together."""
        texts = [self._text.read(prompt.token_ids) for prompt in prompts]
        scores = scores_of(self._served.scores(texts), self.metadata.loss)
        lengths = calibrate_many(scores, self._calibration)
        return [
            Prediction(float(score), *row.tolist())
            for score, row in zip(scores, lengths, strict=True)
        ]

    def score_at(self, expected: float) -> float:
        """The score of prompts that are expected to take so many tokens.

        For the predictions of another predictor, which are to be ranked among this one's.
        """
        return score_at(expected, self._calibration)

    def save(self, folder: Path) -> None:
        """Write the artifact, with the backbone's weights in a folder of their own within it.

        Raises:
            InputError: the folder cannot be written.
        """
        encoder = self._trained()
        PREDICTOR.write(
            folder,
            self.metadata,
            {
                "vocabulary.flat": self._vocabulary.flat,
                "vocabulary.offsets": self._vocabulary.offsets,
                "head.weight": encoder.head.weight.detach().cpu().numpy(),
                "calibration": self._calibration,
            },
            model_card(self.metadata),
            {BACKBONE: encoder.save_backbone},
        )

    @cached_property
    def _text(self) -> PromptText:
        return PromptText(self._vocabulary)

    @cached_property
    def _served(self) -> Encoder:
        return self._trained().in_precision(self.settings.precision)


def load_encoder(folder: Path, metadata: Metadata, tensors: Tensors) -> EncoderPredictor:
    """The predictor of an artifact; its backbone is loaded when it is first asked.

    Raises:
        InputError: something is missing or damaged.
    """
    try:
        settings = EncoderSettings.model_validate(metadata.settings)
    except ValidationError as error:
        first = error.errors()[0]
        raise tensors.damaged(f"settings: {first['loc'][0]}: {first['msg']}") from None
    backbone = folder / BACKBONE
    if not (backbone / "config.json").is_file():
        raise tensors.damaged(f"its backbone is not in {backbone}")
    head = tensors.take("head.weight", np.float32, 2)
    vocabulary = Vocabulary(
        tensors.take("vocabulary.flat", np.uint8), tensors.take("vocabulary.offsets", np.int64)
    )

    def trained() -> Encoder:
        try:
            from lengthwise.predict.encoder.backbone import assemble, load_backbone
        except ImportError as error:
            raise missing_extra(error.name or "torch", "encoder") from None
        model, tokenizer = load_backbone(str(backbone), local=True)
        return assemble(model, tokenizer, head, settings.head, settings.window)

    calibration = tensors.take("calibration", np.float64, 2)
    return EncoderPredictor(metadata, vocabulary, calibration, trained)


def train_encoder(
    dataset: Dataset, tokenizer: PromptTokenizer, recipe: Recipe, progress: Progress
) -> EncoderPredictor:
    """Fine-tune a backbone.

    Args:
        dataset: prompts and lengths.
        tokenizer: that of the model to be served.
        recipe: completed by its kind, with a backbone.
        progress: called now and then.

    Raises:
        InputError: the backbone cannot be loaded.
        LengthwiseError: the loss was no number.
    """
    assert recipe.backbone is not None
    try:
        import torch

        from lengthwise.predict.encoder.backbone import new_encoder, require_precision
    except ImportError as error:
        raise missing_extra(error.name or "torch", "encoder") from None
    require_precision(recipe.precision)
    started = time.monotonic()
    loss = loss_named(recipe.loss or "listmle")
    bucket = recipe.bucket or 1
    lengths = typical_lengths(dataset)
    groups = groups_of(dataset)
    held_out, learnt = hold_out(groups, held_out_rows(lengths.size), recipe.seed)
    outputs = 1
    if loss.name == "cross-entropy":
        outputs = int(loss.targets(lengths, bucket).max()) + 1
    vocabulary = vocabulary_of(tokenizer)
    texts = _texts(dataset, tokenizer, PromptText(vocabulary))
    # Weights that a backbone lacks are drawn too; the caller's generator is left as it was.
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)
        progress("loading the backbone", 0.0)
        encoder = new_encoder(recipe.backbone, recipe.head, outputs, recipe.seed)
        settings = EncoderSettings(
            backbone=recipe.backbone,
            head=recipe.head,
            precision=recipe.precision,
            window=encoder.window,
            epochs=recipe.epochs or EPOCHS,
            learning_rate=recipe.learning_rate or LEARNING_RATE,
            list_length=recipe.list_length or LIST_LENGTH,
        )
        fit(
            encoder,
            [texts[row] for row in learnt],
            lengths[learnt],
            loss,
            bucket,
            settings,
            recipe.seed,
            lambda part: progress("training", 0.95 * part),
        )
    progress("calibrating", 0.95)
    scores = np.full(lengths.size, np.nan)
    served = encoder.in_precision(recipe.precision)
    outputs_there = served.scores([texts[row] for row in held_out])
    scores[held_out] = scores_of(outputs_there, loss.name)
    calibration, metrics = calibrate_held_out(dataset, groups, scores)
    progress("calibrating", 1.0)
    return EncoderPredictor(
        Metadata(
            kind=recipe.kind,
            loss=loss.name,
            bucket=bucket,
            model=dataset.model,
            tokenizer=tokenizer.name,
            tokenizer_fingerprint=tokenizer.fingerprint,
            training=training_record(dataset, recipe.seed, started),
            held_out=metrics,
            settings=settings.model_dump(mode="json"),
        ),
        vocabulary,
        calibration,
        lambda: encoder,
    )


def held_out_rows(rows: int) -> int:
    """How many of the rows calibrate: a tenth, more where that is few, never over a half."""
    return max(int(_HELD_OUT_SHARE * rows), min(rows // 2, _LEAST_HELD_OUT))


def fit(
    encoder: Any,
    texts: Sequence[str],
    lengths: NDArray[np.float64],
    loss: Loss,
    bucket: int,
    settings: EncoderSettings,
    seed: int,
    report: Callable[[float], None],
) -> None:
    """Train an encoder in place.

    Args:
        encoder: an `Encoder`.
        texts: n prompts.
        lengths: shape (n,), tokens of their answers.
        loss: what is lowered.
        bucket: tokens; lengths in one bucket count as equal.
        settings: epochs, learning rate and list length are read.
        seed: of lists and tie-breaks; dropout draws from torch's own generator.
        report: called with the part that is done, 0 to 1.

    Raises:
        LengthwiseError: the loss was no number.
    """
    import torch

    random = np.random.default_rng(seed)
    optimiser = torch.optim.Adam(
        list(encoder.parameters()), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
    )
    encoder.backbone.train()
    size = settings.list_length
    lists = -(-lengths.size // size) * settings.epochs
    done = 0
    for _ in range(settings.epochs):
        # Dealt at random, so ties are broken at random.
        order = random.permutation(lengths.size)
        for first in range(0, lengths.size, size):
            rows = order[first : first + size]
            outputs = encoder.outputs([texts[row] for row in rows])
            scores = outputs.detach().double().cpu().numpy()
            if scores.shape[1] == 1:
                scores = scores[:, 0]
            value, gradient = loss.function(scores, loss.targets(lengths[rows], bucket))
            if not np.isfinite(value):
                raise LengthwiseError(
                    f"the loss became {value} after {done} of {lists} lists: lower --learning-rate"
                )
            optimiser.zero_grad()
            outputs.backward(torch.from_numpy(gradient.reshape(outputs.shape)).to(outputs))
            optimiser.step()
            done += 1
            report(done / lists)
    encoder.backbone.eval()


def _texts(dataset: Dataset, tokenizer: PromptTokenizer, text: PromptText) -> list[str]:
    """Each prompt as serving will read it: through the served model's tokens."""
    texts: list[str] = []
    for chunk in chunks_of(dataset):
        chats = requests_of(dataset, tokenizer, chunk)
        texts += [text.read(prompt.token_ids) for prompt in chats]
    return texts
