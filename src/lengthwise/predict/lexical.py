"""The default predictor: a linear model of the prompt's words, compiled, a few microseconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lengthwise.compiled import compiled_here
from lengthwise.predict.artifact import LexicalParameters, Metadata, read_artifact, write_artifact
from lengthwise.predict.calibration import calibrate
from lengthwise.predict.features import (
    Scratch,
    Template,
    Vocabulary,
    find_features,
    new_scratch,
    read_window,
)
from lengthwise.predict.linear import score
from lengthwise.predict.prediction import Prediction, Prompt


class LexicalPredictor:
    """Predicts from the words of the prompt; trained by `lengthwise train`.

    It keeps 6 MiB of tables besides the tokenizer's vocabulary. One object serves one thread.
    """

    name = "lexical"

    def __init__(self, metadata: Metadata, parameters: LexicalParameters) -> None:
        """A predictor of what was learnt; `load` reads one from disk."""
        self.metadata = metadata
        self.parameters = parameters
        self._table = parameters.model.table()
        self._scratch = new_scratch()

    @classmethod
    def load(cls, folder: Path) -> LexicalPredictor:
        """Read an artifact.

        Raises:
            InputError: there is none, it is damaged, or a newer version wrote it.
        """
        return cls(*read_artifact(folder))

    def save(self, folder: Path) -> None:
        """Write the artifact: config.json, model.safetensors and README.md."""
        write_artifact(folder, self.metadata, self.parameters)

    def predict(self, prompt: Prompt) -> Prediction:
        """The prediction for any token ids; those that the tokenizer does not know are skipped."""
        token_ids = prompt.token_ids
        return Prediction(
            *_predict(
                read_window(token_ids),
                len(token_ids),
                self.parameters.vocabulary,
                self.parameters.template,
                self._table,
                self.parameters.calibration,
                self._scratch,
            )
        )


@compiled_here
def _predict(
    window: NDArray[np.int64],
    total_tokens: int,
    vocabulary: Vocabulary,
    template: Template,
    table: NDArray[np.float32],
    calibration: NDArray[np.float64],
    scratch: Scratch,
) -> tuple[float, float, float, float, float]:
    """Score, expected, low, median and high."""
    found = find_features(window, total_tokens, vocabulary, template, scratch)
    value = score(scratch.buckets[:found], table)
    expected, low, median, high = calibrate(value, calibration)
    return value, expected, low, median, high
