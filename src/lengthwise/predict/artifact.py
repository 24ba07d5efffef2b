"""A predictor on disk: a folder of config.json, model.safetensors and README.md. Never pickle.

config.json says what kind of predictor it is and where it comes from; what the tensors mean is the
kind's own affair.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lengthwise.errors import InputError

SCHEMA: Final = "lengthwise.predictor"
SCHEMA_VERSION: Final = 2  #: of the folder's layout; 1 had no loss, no bucket and kind lexical only

_CONFIG: Final = "config.json"
_TENSORS: Final = "model.safetensors"
_CARD: Final = "README.md"

Scalar = TypeVar("Scalar", bound=np.generic)


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

    schema_name: str = Field(default=f"{SCHEMA}/{SCHEMA_VERSION}", alias="schema")
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


class Tensors:
    """The arrays of an artifact, checked as they are taken."""

    def __init__(self, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Arrays by name, and the file they are from."""
        self._path = path
        self._arrays = arrays

    def __contains__(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return name in self._arrays

    def take(self, name: str, dtype: type[Scalar], dimensions: int = 1) -> NDArray[Scalar]:
        """An array, contiguous, its numbers all finite.

        Raises:
            InputError: it is missing, or not what it should be.
        """
        array = self._arrays.get(name)
        if array is None:
            raise self.damaged(f"tensor {name} is missing")
        if array.dtype != dtype or array.ndim != dimensions:
            raise self.damaged(f"tensor {name} has another type or shape than it should")
        if np.issubdtype(dtype, np.floating) and not np.isfinite(array).all():
            raise self.damaged(f"tensor {name} holds a number that is not finite")
        return np.ascontiguousarray(array)

    def damaged(self, reason: str) -> InputError:
        """The error for arrays that do not fit together."""
        return _damaged(self._path, reason)


def write_artifact(folder: Path, metadata: Metadata, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Write an artifact, over one that is there.

    Raises:
        InputError: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _TENSORS).write_bytes(save(dict(tensors)))
        (folder / _CARD).write_text(model_card(metadata), encoding="utf-8")
        # Last, since a folder without it is not an artifact.
        (folder / _CONFIG).write_text(
            metadata.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8"
        )
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}") from None


def read_artifact(folder: Path) -> tuple[Metadata, Tensors]:
    """Read an artifact; of this version, or of an older one.

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
        return Metadata.model_validate(config)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{place}: {first['msg']}") from None


def _read_tensors(folder: Path) -> Tensors:
    path = folder / _TENSORS
    try:
        return Tensors(path, load_file(path))
    except FileNotFoundError:
        raise _damaged(path, "the file is missing") from None
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, reason: str) -> InputError:
    return InputError(f"{path} is damaged: {reason}; train again")


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
