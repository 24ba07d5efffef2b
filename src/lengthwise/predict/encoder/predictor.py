"""The predictor with a pretrained backbone: slow, so serving asks it beside the engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from lengthwise.errors import InputError, missing_extra
from lengthwise.predict.artifact import Metadata, write_artifact
from lengthwise.predict.calibration import calibrate_many, score_at
from lengthwise.predict.encoder import EncoderSettings
from lengthwise.predict.lexical import scores_of
from lengthwise.predict.model_card import model_card
from lengthwise.predict.prediction import Prediction, Prompt
from lengthwise.predict.weights_folder import Tensors
from lengthwise.predict.words import Vocabulary

if TYPE_CHECKING:
    from lengthwise.predict.encoder.backbone import Encoder


READ_TOKENS: Final = 8_192  #: of a prompt, its end: four times what a backbone usually reads


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


BACKBONE: Final = "backbone"  #: folder within the artifact


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
        backbone = folder / BACKBONE
        try:
            shutil.rmtree(backbone, ignore_errors=True)
            backbone.mkdir(parents=True)
            encoder.save_backbone(backbone)
        except OSError as error:
            raise InputError(f"cannot write {backbone}: {error.strerror or error}") from None
        write_artifact(
            folder,
            self.metadata,
            {
                "vocabulary.flat": self._vocabulary.flat,
                "vocabulary.offsets": self._vocabulary.offsets,
                "head.weight": encoder.head.weight.detach().cpu().numpy(),
                "calibration": self._calibration,
            },
            model_card(self.metadata),
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
