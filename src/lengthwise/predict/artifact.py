"""A predictor on disk: what config.json says of it, and the README.md that explains it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from lengthwise.predict.weights_folder import Tensors, WeightsFolder

PREDICTOR: Final = WeightsFolder(
    "lengthwise.predictor", 2, "predictor", verb="train", again="train again"
)


class Training(BaseModel):
    """What a predictor was trained on."""

    model_config = ConfigDict(frozen=True)

    dataset: str  #: name of the file
    selection: str  #: split and conditions, "all rows" if none
    rows: int
    rejected_rows: int  #: malformed rows that were left out
    answers: int  #: answers whose lengths were seen; more than rows where prompts were sampled
    seed: int
    seconds: float
    trained_at: str  #: ISO 8601, UTC


class HeldOut(BaseModel):
    """How good it was on training rows that it had not seen."""

    model_config = ConfigDict(frozen=True)

    rows: int
    tau: float | None  #: Kendall tau-b
    mae: float  #: of the expected length, tokens
    coverage_80: float  #: share of answers between the 10 % and the 90 % quantile


class Metadata(BaseModel):
    """config.json."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_name: str = Field(default=PREDICTOR.schema_name, alias="schema")
    kind: str = "lexical"  #: of `kinds.KINDS`
    loss: str = "listmle"  #: of `losses.LOSSES`
    bucket: int = 1  #: tokens; lengths in one bucket counted as equal
    features: int = 1  #: version of what `words.py` and `features.py` extract
    model: str | None  #: whose answers' lengths these are, where the table says
    tokenizer: str  #: name or path it was trained with
    tokenizer_fingerprint: str  #: SHA-256 of its vocabulary
    training: Training
    held_out: HeldOut
    settings: dict[str, JsonValue] = {}  #: what else a kind needs to know


def write_artifact(folder: Path, metadata: Metadata, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write an artifact, over one that is there.

    Raises:
        InputError: the folder cannot be written.
    """
    PREDICTOR.write(folder, metadata, tensors, model_card(metadata))


def read_artifact(folder: Path) -> tuple[Metadata, Tensors]:
    """Read an artifact.

    Raises:
        InputError: not an artifact, damaged, or written by another version.
    """
    return PREDICTOR.read_config(folder, Metadata), PREDICTOR.read_tensors(folder)


def model_card(metadata: Metadata) -> str:
    """A model card in Markdown."""
    from lengthwise.predict.kinds import kind_named

    training, held_out = metadata.training, metadata.held_out
    backbone = metadata.settings.get("backbone")
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
