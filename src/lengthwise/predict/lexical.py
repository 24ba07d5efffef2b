"""The default predictor: a linear model of the prompt's words, compiled, a few microseconds."""

from __future__ import annotations

from pathlib import Path

from lengthwise.predict.artifact import LexicalParameters, Metadata, read_artifact, write_artifact
from lengthwise.predict.calibration import calibrate
from lengthwise.predict.features import find_features, new_scratch
from lengthwise.predict.linear import score
from lengthwise.predict.prediction import Prediction, Prompt


class LexicalPredictor:
    """Predicts from the words of the prompt; trained by `lengthwise train`.

    It keeps 7 MiB of tables besides the tokenizer's vocabulary. One object serves one thread.
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
        parameters, scratch = self.parameters, self._scratch
        found = find_features(prompt.token_ids, parameters.vocabulary, parameters.template, scratch)
        value = score(scratch.buckets[:found], self._table)
        return Prediction(value, *calibrate(value, parameters.calibration))
