"""A folder of hidden states: what `lengthwise collect` writes and `lengthwise train-probe` reads.

    meta.json                    the model, its layers, how the answers were made
    shard-00000.safetensors, …   some requests each

Layer k is the output after k layers; 0 is the embedding. A state of age a belongs to the a-th
output token, in the pass that computes the next one; the answer then has length − a tokens to come.
The length counts the token that ends the answer. No text is stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from lengthwise.errors import InputError
from lengthwise.files import replaced

SCHEMA: Final = "lengthwise.states/1"
META: Final = "meta.json"
TRAIN, VALID, TEST = 0, 1, 2  #: values of `split`

Pooling = Literal["mean", "last"]


class StatesMeta(BaseModel):
    """meta.json."""

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    schema_name: Literal["lengthwise.states/1"] = Field(default=SCHEMA, alias="schema")
    model: str
    model_fingerprint: str
    hidden_size: int = Field(ge=1)
    layers: list[int] = Field(min_length=1)  #: those stored, in the order of the tensors
    layers_total: int = Field(ge=1)  #: of the model, so layers are 0 to this
    max_tokens: int = Field(ge=1)  #: at which answers were cut
    seed: int
    requests: int = Field(ge=0)  #: in all shards together
    complete: bool  #: False while collecting


class Shard(NamedTuple):
    """The tensors of one shard: n requests, m decode states, L layers, H hidden units."""

    length: NDArray[np.int32]  #: [n], output tokens, the one that ends the answer counted
    finished: NDArray[np.bool_]  #: [n], ended by itself and not at the limit
    split: NDArray[np.int8]  #: [n], TRAIN, VALID or TEST, by a hash of the prompt
    prompt_tokens: NDArray[np.int32]  #: [n]
    prompt_mean: NDArray[np.float16]  #: [n, L, H], mean over the prompt's tokens
    prompt_last: NDArray[np.float16]  #: [n, L, H], of the prompt's last token
    decode_request: NDArray[np.int32]  #: [m], the request's row in this shard
    decode_age: NDArray[np.int32]  #: [m], ≥ 1
    decode_states: NDArray[np.float16]  #: [m, L, H]
    prompt_states: NDArray[np.float16] | None = None  #: [tokens, L, H], for attention pooling
    prompt_starts: NDArray[np.int64] | None = None  #: [n + 1], a request's rows in prompt_states


#: Field of `Shard` → name of the tensor.
TENSORS: Final = {
    "length": "request.length",
    "finished": "request.finished",
    "split": "request.split",
    "prompt_tokens": "request.prompt_tokens",
    "prompt_mean": "prompt.mean",
    "prompt_last": "prompt.last",
    "decode_request": "decode.request",
    "decode_age": "decode.age",
    "decode_states": "decode.states",
    "prompt_states": "prompt.states",
    "prompt_starts": "prompt.starts",
}


def shard_path(folder: Path, index: int) -> Path:
    """The file of a shard."""
    return folder / f"shard-{index:05d}.safetensors"


def write_shard(folder: Path, index: int, shard: Shard) -> None:
    """Write a shard so that it is there whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    tensors = {
        TENSORS[name]: np.ascontiguousarray(array)
        for name, array in shard._asdict().items()
        if array is not None
    }
    path = shard_path(folder, index)
    try:
        with replaced(path) as part:
            save_file(tensors, part)
    except SafetensorError as error:  # so it reports a full disk
        raise OSError(str(error)) from None


def write_meta(folder: Path, meta: StatesMeta) -> None:
    """Write meta.json so that it is there whole or not at all.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    with replaced(folder / META) as part:
        part.write_text(meta.model_dump_json(indent=2, by_alias=True) + "\n", encoding="utf-8")


class Requests(NamedTuple):
    """The requests of all shards, each array [requests]."""

    length: NDArray[np.int32]
    finished: NDArray[np.bool_]
    split: NDArray[np.int8]
    prompt_tokens: NDArray[np.int32]


class Moments(NamedTuple):
    """The decode states of all shards, sorted by request and age, each array [states]."""

    request: NDArray[np.int64]  #: index into `Requests`
    age: NDArray[np.int64]


class States:
    """A checked folder. The states themselves are read one layer at a time."""

    def __init__(self, folder: Path) -> None:
        """Read all but the states.

        Raises:
            InputError: no such folder, collection was interrupted, or a file is damaged.
        """
        self.folder = folder
        self.meta = read_meta(folder)
        if not self.meta.complete:
            raise InputError(
                f"{folder}: collection was interrupted; run the same lengthwise collect again, it "
                "goes on where it stopped"
            )
        self._paths = sorted(folder.glob("shard-*.safetensors"))
        if [path.name for path in self._paths] != [
            shard_path(folder, index).name for index in range(len(self._paths))
        ]:
            raise InputError(f"{folder}: a shard is missing: collect again into an empty folder")
        requests: list[Requests] = []
        moments: list[Moments] = []
        first = 0
        for path in self._paths:
            shard_requests, shard_moments = _read_index(path, self.meta)
            moments.append(Moments(shard_moments.request + first, shard_moments.age))
            requests.append(shard_requests)
            first += shard_requests.length.size
        if first != self.meta.requests or first == 0:
            raise InputError(
                f"{folder}: {META} counts {self.meta.requests} requests, the shards hold {first}: "
                "collect again into an empty folder"
            )
        self.requests = Requests(*map(np.concatenate, zip(*requests, strict=True)))
        unsorted = Moments(*map(np.concatenate, zip(*moments, strict=True)))
        self._order = np.lexsort((unsorted.age, unsorted.request))
        self.moments = Moments(unsorted.request[self._order], unsorted.age[self._order])

    def decode_states(self, layer: int) -> NDArray[np.float16]:
        """The states of `moments` at a layer, shape (states, hidden).

        Raises:
            InputError: the layer is not stored, or a file is damaged.
        """
        sorted_states: NDArray[np.float16] = self._read("decode_states", layer)[self._order]
        return sorted_states

    def prompt_pooled(self, layer: int, pooling: Pooling) -> NDArray[np.float16]:
        """The pooled prompt of each request at a layer, shape (requests, hidden).

        Raises:
            InputError: the layer is not stored, or a file is damaged.
        """
        return self._read("prompt_mean" if pooling == "mean" else "prompt_last", layer)

    def prompt_states(self, layer: int) -> tuple[NDArray[np.float16], NDArray[np.int64]] | None:
        """Every prompt token's state, where the collection has them for all requests.

        Returns:
            states, shape (tokens, hidden), and where each request's begin, shape (requests + 1,);
            or None.

        Raises:
            InputError: the layer is not stored, or a file is damaged.
        """
        starts = [np.zeros(1, dtype=np.int64)]
        for path in self._paths:
            with _opened(path) as tensors:
                if TENSORS["prompt_starts"] not in tensors.keys():  # noqa: SIM118, no mapping
                    return None
                own = tensors.get_tensor(TENSORS["prompt_starts"])
            if np.any(np.diff(own) < 1):
                return None
            starts.append(own[1:] + starts[-1][-1])
        return self._read("prompt_states", layer), np.concatenate(starts)

    def _read(self, field: str, layer: int) -> NDArray[np.float16]:
        """One layer of a tensor [rows, layers, hidden], of all shards."""
        if layer not in self.meta.layers:
            raise InputError(
                f"{self.folder} has no states of layer {layer}: it has "
                f"{', '.join(map(str, self.meta.layers))} of a model with layers 0 to "
                f"{self.meta.layers_total}; collect with --layers {layer}"
            )
        place = self.meta.layers.index(layer)
        parts = []
        for path in self._paths:
            try:
                with _opened(path) as tensors:
                    parts.append(tensors.get_slice(TENSORS[field])[:, place, :])
            except SafetensorError as error:
                raise _damaged(path, str(error)) from None
        return np.concatenate(parts)


def open_states(folder: Path) -> States:
    """Read and check a folder written by `lengthwise collect`.

    Raises:
        InputError: no such folder, collection was interrupted, or a file is damaged.
    """
    return States(folder)


def read_meta(folder: Path) -> StatesMeta:
    """Read and check meta.json.

    Raises:
        InputError: no such folder, or none that `lengthwise collect` wrote.
    """
    path = folder / META
    try:
        return StatesMeta.model_validate_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(
            f"{folder} holds no {META}: give a folder written by lengthwise collect --out DIR"
        ) from None
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise _damaged(path, f"{place}: {first['msg']}") from None
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from None


def _read_index(path: Path, meta: StatesMeta) -> tuple[Requests, Moments]:
    """What a shard holds, without its states; and whether its parts fit each other."""
    try:
        with _opened(path) as tensors:
            requests = Requests(*(tensors.get_tensor(TENSORS[name]) for name in Requests._fields))
            request = tensors.get_tensor(TENSORS["decode_request"]).astype(np.int64)
            age = tensors.get_tensor(TENSORS["decode_age"]).astype(np.int64)
            shapes = {
                name: tuple(tensors.get_slice(TENSORS[name]).get_shape())
                for name in ("prompt_mean", "prompt_last", "decode_states")
            }
    except SafetensorError as error:
        raise _damaged(path, str(error)) from None
    count = requests.length.size
    width = (len(meta.layers), meta.hidden_size)
    fits = (
        all(array.shape == (count,) for array in requests)
        and request.shape == age.shape == shapes["decode_states"][:1]
        and shapes["prompt_mean"] == shapes["prompt_last"] == (count, *width)
        and shapes["decode_states"][1:] == width
    )
    if not fits:
        raise _damaged(path, "the sizes of its tensors do not fit each other or meta.json")
    if request.size and not (request.min() >= 0 and request.max() < count):
        raise _damaged(path, "a state belongs to no request")
    if np.any(requests.length < 0) or not np.all(np.isin(requests.split, (TRAIN, VALID, TEST))):
        raise _damaged(path, "a length is negative, or a split unknown")
    if np.any(age < 1) or np.any(age > requests.length[request]):
        raise _damaged(path, "a state is older than its answer is long")
    return requests, Moments(request, age)


def _opened(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="np")
    except (OSError, SafetensorError) as error:
        raise _damaged(path, str(error)) from None


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path} is damaged ({why}): collect again into an empty folder")
