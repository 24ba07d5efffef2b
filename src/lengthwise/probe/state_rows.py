"""The usable rows of a folder of states, at the layers that a probe listens to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lengthwise.probe.filter_replay import Record
from lengthwise.probe.states import Pooling, States


@dataclass(frozen=True)
class Rows:
    """The usable rows of a folder.

    Moments are the output tokens whose state is known, sorted by request and age.
    """

    inputs: NDArray[np.float16]  #: [moments, layers · hidden], the layers side by side
    request: NDArray[np.int64]  #: [moments]
    age: NDArray[np.int64]  #: [moments], output tokens so far
    remaining: NDArray[np.int64]  #: [moments], output tokens still to come
    length: NDArray[np.int64]  #: [requests], output tokens in all
    split: NDArray[np.int8]  #: [requests]
    usable: NDArray[np.bool_]  #: [requests], all of whose prompt's states are finite
    max_tokens: int
    dropped_states: int  #: moments left out: not finite

    @property
    def dropped_requests(self) -> int:
        """Requests left out, with their moments: the prompt's states are not finite."""
        return int((~self.usable).sum())

    def moments(self, split: int) -> NDArray[np.int64]:
        """The moments of a split."""
        return np.flatnonzero(self.split[self.request] == split)

    def requests(self, split: int) -> NDArray[np.int64]:
        """The usable requests of a split."""
        return np.flatnonzero((self.split == split) & self.usable)

    def weights(self) -> NDArray[np.float32]:
        """How many tokens of its answer each moment stands for, [moments].

        Of a training answer only some moments are kept, and no more of a long one. The tokens that
        a server sees are mostly those of long answers.
        """
        kept = np.bincount(self.request, minlength=self.length.size)
        found = (self.length - 1)[self.request] / kept[self.request]
        return found.astype(np.float32)

    def most(self, moments: NDArray[np.int64]) -> NDArray[np.float64]:
        """How many tokens may still have come at each moment."""
        found: NDArray[np.float64] = (self.max_tokens - self.age[moments]).astype(np.float64)
        return found

    def record(self, split: int, whole: NDArray[np.float32], probe: NDArray[np.float32]) -> Record:
        """The answers of a split, for a replay.

        Args:
            split: which.
            whole: [requests, bins], what each prompt says of the whole length.
            probe: [moments of the split, bins], what the probe says.
        """
        moments = self.moments(split)
        present, request = np.unique(self.request[moments], return_inverse=True)
        return Record(
            request=request,
            age=self.age[moments],
            remaining=self.remaining[moments],
            most=self.most(moments),
            whole=whole[present],
            probe=probe,
        )


def layer_rows(states: States, layers: Sequence[int]) -> Rows:
    """Read the states of some layers; leave out what is not finite.

    Raises:
        InputError: a layer that is not stored, or a damaged file.
    """
    length = states.requests.length.astype(np.int64)
    usable = np.ones(length.size, dtype=bool)
    for pooling in ("mean", "last"):
        usable &= np.isfinite(prompt_inputs(states, layers, pooling)).all(axis=1)
    inputs = _side_by_side([states.decode_states(layer) for layer in layers])
    request, age = states.moments
    of_usable = usable[request]
    finite = np.isfinite(inputs).all(axis=1)
    kept = np.flatnonzero(of_usable & finite)
    return Rows(
        inputs=inputs if kept.size == age.size else inputs[kept],
        request=request[kept],
        age=age[kept],
        remaining=(length[request] - age)[kept],
        length=length,
        split=states.requests.split,
        usable=usable,
        max_tokens=states.meta.max_tokens,
        dropped_states=int((of_usable & ~finite).sum()),
    )


def prompt_inputs(states: States, layers: Sequence[int], pooling: Pooling) -> NDArray[np.float16]:
    """Each request's pooled prompt, [requests, layers · hidden]."""
    return _side_by_side([states.prompt_pooled(layer, pooling) for layer in layers])


def prompt_tokens(
    states: States, layers: Sequence[int]
) -> tuple[NDArray[np.float16], NDArray[np.int64]] | None:
    """Every prompt token's state and where each request's begin, where they are stored.

    Returns:
        [tokens, layers · hidden] and [requests + 1], or None.
    """
    found = [states.prompt_states(layer) for layer in layers]
    parts = [each for each in found if each is not None]
    if len(parts) < len(found):
        return None
    return _side_by_side([tokens for tokens, _ in parts]), parts[0][1]


def _side_by_side(parts: Sequence[NDArray[np.float16]]) -> NDArray[np.float16]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
