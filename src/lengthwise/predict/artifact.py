"""A predictor on disk: what config.json says of it, and its tensors."""

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


def write_artifact(
    folder: Path, metadata: Metadata, tensors: Mapping[str, NDArray[Any]], card: str
) -> None:
    """Write an artifact, over one that is there; `card` is its README.md.

    Raises:
        InputError: the folder cannot be written.
    """
    PREDICTOR.write(folder, metadata, tensors, card)


def read_artifact(folder: Path) -> tuple[Metadata, Tensors]:
    """Read an artifact.

    Raises:
        InputError: not an artifact, damaged, or written by another version.
    """
    return PREDICTOR.read_config(folder, Metadata), PREDICTOR.read_tensors(folder)
