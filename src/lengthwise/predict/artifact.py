"""What was learnt, on disk: a folder of config.json, model.safetensors and README.md. Never pickle.

A `WeightsFolder` is such a folder, of whatever kind. Its config.json says what it is and where it
comes from; what the tensors mean is its reader's affair.

`Metadata` is what config.json says of a predictor.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from lengthwise.errors import InputError
from lengthwise.files import parse_json, replaced, replaced_folder

_CONFIG: Final = "config.json"
_TENSORS: Final = "model.safetensors"
_CARD: Final = "README.md"

Config = TypeVar("Config", bound=BaseModel)
Scalar = TypeVar("Scalar", bound=np.generic)


class WeightsFolder(NamedTuple):
    """What lies in a folder."""

    schema: str  #: such as "lengthwise.predictor"
    version: int  #: of the folder's layout; no other is read
    noun: str  #: such as "predictor"
    verb: str  #: the command that writes it
    again: str  #: what mends a damaged one, such as "train again"

    @property
    def schema_name(self) -> str:
        """What config.json says that it is."""
        return f"{self.schema}/{self.version}"

    def write(
        self,
        folder: Path,
        config: BaseModel,
        tensors: Mapping[str, NDArray[Any]],
        card: str,
        inner: Mapping[str, Callable[[Path], None]] = MappingProxyType({}),
    ) -> None:
        """Write the folder, over one that is there.

        Args:
            folder: to write.
            config: config.json.
            tensors: model.safetensors.
            card: README.md.
            inner: by the names of folders within it, what fills them.

        Raises:
            InputError: the folder cannot be written; what was there before is unchanged.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # All is written before any of it takes its place: tensors beside the configuration of
            # others would be read as what they are not. That one comes last, as a folder without it
            # is none of ours.
            with (
                replaced(folder / _CONFIG) as config_part,
                replaced(folder / _CARD) as card_part,
                replaced(folder / _TENSORS) as tensors_part,
                contextlib.ExitStack() as inner_parts,
            ):
                for name, fill in inner.items():
                    fill(inner_parts.enter_context(replaced_folder(folder / name)))
                tensors_part.write_bytes(save(dict(tensors)))
                card_part.write_text(card, encoding="utf-8")
                config_part.write_text(
                    config.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8"
                )
        except (OSError, SafetensorError) as error:  # the second is a full disk, too
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write {folder}: {reason}") from None

    def read_config(self, folder: Path, config: type[Config]) -> Config:
        """What config.json says.

        Raises:
            InputError: not such a folder, damaged, or written by another version.
        """
        path = folder / _CONFIG
        advice = f"give a folder written by lengthwise {self.verb} --out DIR"
        if not folder.is_dir():
            problem = "is not a folder" if folder.exists() else "does not exist"
            raise InputError(f"{folder} {problem}: {advice}")
        try:
            values = parse_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{folder} holds no {_CONFIG}: {advice}") from None
        except (OSError, ValueError) as error:
            raise self.damaged(path, str(error)) from None
        schema = values.get("schema") if isinstance(values, dict) else None
        name, _, version = str(schema).partition("/")
        if name != self.schema or not version.isdecimal():
            raise InputError(
                f"{path} is no {self.noun} of Lengthwise (schema {schema!r}): {advice}"
            )
        if int(version) != self.version:
            newer = int(version) > self.version
            age, mend = ("a newer", "upgrade Lengthwise, or ") if newer else ("an older", "")
            raise InputError(
                f"{folder} was written by {age} Lengthwise ({schema}, this one reads "
                f"{self.schema_name}): {mend}{self.again}"
            )
        try:
            return config.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise self.damaged(path, f"{place}: {first['msg']}") from None

    def read_tensors(self, folder: Path) -> Tensors:
        """The arrays.

        Raises:
            InputError: they are missing or damaged.
        """
        path = folder / _TENSORS
        try:
            return Tensors(self, path, load_file(path))
        except FileNotFoundError:
            raise self.damaged(path, "the file is missing") from None
        except (OSError, SafetensorError) as error:
            raise self.damaged(path, str(error)) from None

    def damaged(self, path: Path, reason: str) -> InputError:
        """The error for a file that is not what it should be."""
        return InputError(f"{path} is damaged: {reason}; {self.again}")


class Tensors:
    """The arrays of a folder, checked as they are taken."""

    def __init__(self, kind: WeightsFolder, path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Arrays by name, and the file they are from."""
        self._kind = kind
        self._path = path
        self._arrays = arrays

    def __contains__(self, name: str) -> bool:
        """Whether there is an array of this name."""
        return name in self._arrays

    def __getitem__(self, name: str) -> NDArray[Any]:
        """An array as it is.

        Raises:
            InputError: it is missing.
        """
        array = self._arrays.get(name)
        if array is None:
            raise self.damaged(f"tensor {name} is missing")
        return array

    def take(self, name: str, dtype: type[Scalar], dimensions: int = 1) -> NDArray[Scalar]:
        """An array, contiguous, its numbers all finite.

        Raises:
            InputError: it is missing, or not what it should be.
        """
        array = self[name]
        if array.dtype != dtype or array.ndim != dimensions:
            raise self.damaged(f"tensor {name} has another type or shape than it should")
        if np.issubdtype(dtype, np.floating) and not np.isfinite(array).all():
            raise self.damaged(f"tensor {name} holds a number that is not finite")
        return np.ascontiguousarray(array)

    def damaged(self, reason: str) -> InputError:
        """The error for arrays that do not fit together."""
        return self._kind.damaged(self._path, reason)


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
    """config.json of a predictor."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_name: str = Field(default=PREDICTOR.schema_name, alias="schema")
    kind: str = "lexical"  #: of `kinds.KINDS`
    loss: str = "listmle"  #: of `losses.LOSSES`
    bucket: int = 1  #: tokens; lengths in one bucket counted as equal
    features: int = 1  #: version of what `features.py` extracts
    model: str | None  #: whose answers' lengths these are, where the table says
    tokenizer: str  #: name or path it was trained with
    tokenizer_fingerprint: str  #: SHA-256 of its vocabulary
    training: Training
    held_out: HeldOut
    settings: dict[str, JsonValue] = {}  #: what else a kind needs to know


def read_artifact(folder: Path) -> tuple[Metadata, Tensors]:
    """Read an artifact.

    Raises:
        InputError: not an artifact, damaged, or written by another version.
    """
    return PREDICTOR.read_config(folder, Metadata), PREDICTOR.read_tensors(folder)
