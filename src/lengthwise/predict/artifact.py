"""A predictor on disk: a folder of config.json, model.safetensors and README.md. Never pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lengthwise.errors import InputError
from lengthwise.predict.features import BUCKETS
from lengthwise.predict.linear import LinearModel
from lengthwise.predict.model_card import model_card
from lengthwise.predict.words import Template, Vocabulary

SCHEMA: Final = "lengthwise.predictor"
SCHEMA_VERSION: Final = 1  #: of the folder's layout
FEATURES_VERSION: Final = (
    1  #: of what `words.py` and `features.py` extract: one number per meaning of a bucket
)

_CONFIG: Final = "config.json"
_TENSORS: Final = "model.safetensors"
_CARD: Final = "README.md"


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
    """How good it was on training rows that it had not seen (cross-fitted)."""

    model_config = ConfigDict(frozen=True)

    rows: int
    tau: float | None  #: Kendall tau-b
    mae: float  #: of the expected length, tokens
    coverage_80: float  #: share of answers between the 10 % and the 90 % quantile


class Metadata(BaseModel):
    """config.json."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_name: str = Field(default=f"{SCHEMA}/{SCHEMA_VERSION}", alias="schema")
    kind: str = "lexical"
    features: int = FEATURES_VERSION
    model: str | None  #: whose answers' lengths these are, where the table says
    tokenizer: str  #: name or path it was trained with
    tokenizer_fingerprint: str  #: SHA-256 of its vocabulary
    training: Training
    held_out: HeldOut


class LexicalParameters(NamedTuple):
    """model.safetensors."""

    vocabulary: Vocabulary
    template: Template
    model: LinearModel
    calibration: NDArray[np.float64]  #: see `calibration.fit_calibration`


def write_artifact(folder: Path, metadata: Metadata, parameters: LexicalParameters) -> None:
    """Write an artifact, over one that is there.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tensors = save(
            {
                "vocabulary.flat": parameters.vocabulary.flat,
                "vocabulary.offsets": parameters.vocabulary.offsets,
                "template.before": parameters.template.before,
                "template.after": parameters.template.after,
                "model.buckets": parameters.model.buckets,
                "model.weights": parameters.model.weights,
                "model.idf": parameters.model.idf,
                "calibration": parameters.calibration,
            }
        )
        (folder / _TENSORS).write_bytes(tensors)
        (folder / _CARD).write_text(model_card(metadata), encoding="utf-8")
        # Last, since a folder without it is not an artifact.
        (folder / _CONFIG).write_text(
            metadata.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from None


def read_artifact(folder: Path) -> tuple[Metadata, LexicalParameters]:
    """Read an artifact and check it.

    Raises:
        InputError: not an artifact, damaged, or written by a newer version.
    """
    return _read_config(folder), _read_tensors(folder)


def _read_config(folder: Path) -> Metadata:
    path = folder / _CONFIG
    if not folder.is_dir():
        problem = "is not a folder" if folder.exists() else "does not exist"
        raise InputError(f"{folder} {problem}: give a folder written by lengthwise train --out DIR")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {_CONFIG}: give a folder written by lengthwise train --out DIR"
        ) from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None
    schema = config.get("schema") if isinstance(config, dict) else None
    name, _, version = str(schema).partition("/")
    if name != SCHEMA or not version.isdecimal():
        raise InputError(
            f"{path} is no predictor of Lengthwise (schema {schema!r}): "
            "give a folder written by lengthwise train --out DIR"
        )
    if int(version) > SCHEMA_VERSION:
        raise InputError(
            f"{folder} was written by a newer Lengthwise ({schema}, this one reads up to "
            f"{SCHEMA}/{SCHEMA_VERSION}): upgrade Lengthwise, or train again"
        )
    try:
        metadata = Metadata.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{place}: {first['msg']}") from None
    if metadata.kind != "lexical":
        raise InputError(
            f"{folder} holds a predictor of kind {metadata.kind!r}, this version reads 'lexical': "
            "upgrade Lengthwise, or train again"
        )
    if metadata.features != FEATURES_VERSION:
        raise InputError(
            f"{folder} was trained on features of version {metadata.features}, this Lengthwise "
            f"extracts version {FEATURES_VERSION}: train again"
        )
    return metadata


def _read_tensors(folder: Path) -> LexicalParameters:
    path = folder / _TENSORS
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise _damaged(path, "the file is missing") from None
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None

    def tensor(name: str, dtype: type[np.generic], dimensions: int = 1) -> NDArray[np.generic]:
        array = tensors.get(name)
        if array is None:
            raise _damaged(path, f"tensor {name} is missing")
        if array.dtype != dtype or array.ndim != dimensions:
            raise _damaged(path, f"tensor {name} has another type or shape than it should")
        return np.ascontiguousarray(array)

    parameters = LexicalParameters(
        Vocabulary(
            tensor("vocabulary.flat", np.uint8),  # type: ignore[arg-type]
            tensor("vocabulary.offsets", np.int64),  # type: ignore[arg-type]
        ),
        Template(
            tensor("template.before", np.uint8),  # type: ignore[arg-type]
            tensor("template.after", np.uint8),  # type: ignore[arg-type]
        ),
        LinearModel(
            tensor("model.buckets", np.int32),  # type: ignore[arg-type]
            tensor("model.weights", np.float32),  # type: ignore[arg-type]
            tensor("model.idf", np.float32),  # type: ignore[arg-type]
        ),
        tensor("calibration", np.float64, 2),  # type: ignore[arg-type]
    )
    wrong = _inconsistency(parameters)
    if wrong:
        raise _damaged(path, wrong)
    return parameters


def _inconsistency(parameters: LexicalParameters) -> str | None:
    """What compiled code, which checks no bounds, could not survive."""
    flat, offsets = parameters.vocabulary
    if (
        offsets.size < 1
        or offsets[0] != 0
        or offsets[-1] != flat.size
        or np.any(np.diff(offsets) < 0)
    ):
        return "the vocabulary's offsets do not fit its bytes"
    buckets, weights, idf = parameters.model
    if not buckets.size == weights.size == idf.size:
        return "the model's tensors differ in length"
    if buckets.size and (buckets.min() < 0 or buckets.max() >= BUCKETS):
        return "a feature is out of range"
    calibration = parameters.calibration
    if calibration.shape[0] < 1 or calibration.shape[1] != 5:
        return "the calibration table has another shape than it should"
    if not all(np.isfinite(array).all() for array in (weights, idf, calibration)):
        return "a number is not finite"
    return None


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged: {reason}; train again")
