"""The folder of hidden states while it is being filled."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from lengthwise.errors import InputError
from lengthwise.probe.states import (
    META,
    TENSORS,
    Shard,
    StatesMeta,
    read_meta,
    shard_path,
    write_meta,
    write_shard,
)
from lengthwise.vllm.state_collector import CollectedStates


@dataclass(frozen=True)
class Answered:
    """One finished request."""

    length: int  #: tokens, the one that ended it counted
    finished: bool  #: by itself
    states: CollectedStates


class ShardFolder:
    """Writes shards as soon as all of their requests are there.

    Args:
        folder: where.
        meta: what is collected.
        sizes: tokens of each prompt, shape [n].
        splits: of each request, shape [n].
        per_shard: requests in each shard but the last.
        expected_bytes: of one shard, until one has been written.

    Attributes:
        requests: in shards that are written.
        finished: of them, those whose answers ended by themselves.
        states: decode states in shards that are written.
        bytes: of the shards that are written.
    """

    def __init__(
        self,
        folder: Path,
        meta: StatesMeta,
        sizes: NDArray[np.int32],
        splits: NDArray[np.int8],
        per_shard: int,
        expected_bytes: float,
    ) -> None:
        self.folder = folder
        self.meta = meta
        self.splits = splits
        self.requests = 0
        self.finished = 0
        self.states = 0
        self.bytes = 0
        self._sizes = sizes
        self._per_shard = per_shard
        self._expected_bytes = expected_bytes
        self._written: set[int] = set()
        self._begun: dict[int, dict[int, Answered]] = {}

    def open(self) -> None:
        """Make the folder, or take over what an interrupted run left there.

        Raises:
            InputError: it holds states of another collection.
            OSError: it cannot be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / META).exists():
            there = read_meta(self.folder).model_copy(update=_progress_of(self.meta))
            if there != self.meta:
                raise self._another()
        elif shard_path(self.folder, 0).exists():
            raise self._another()
        for shard in range(self._count):
            if self._is_written(shard):
                self._written.add(shard)
        self._recount()
        self._write_meta(complete=False)

    def missing(self) -> list[int]:
        """The shards that are still to be written."""
        return [shard for shard in range(self._count) if shard not in self._written]

    def first(self, shard: int) -> int:
        """The number of a shard's first request."""
        return shard * self._per_shard

    def numbers(self, shard: int) -> range:
        """The requests of a shard."""
        first = self.first(shard)
        return range(first, min(first + self._per_shard, len(self._sizes)))

    def start(self, shard: int, max_bytes: int) -> bool:
        """Begin a shard, if the folder will then still be within `max_bytes`.

        Raises:
            InputError: not even one shard fits.
        """
        each = self.bytes / len(self._written) if self._written else self._expected_bytes
        if self.bytes + (len(self._begun) + 1) * each > max_bytes:
            if not self._written and not self._begun:
                raise InputError(
                    f"--max-gib is too small: the first shard alone needs about "
                    f"{each / 2**30:.2f} GiB; give more, or collect fewer layers"
                )
            return False
        self._begun[shard] = {}
        return True

    def add(self, number: int, answered: Answered) -> None:
        """Take one request; its shard is written with the last of them.

        Raises:
            OSError: the shard cannot be written.
        """
        shard = number // self._per_shard
        begun = self._begun[shard]
        begun[number] = answered
        if len(begun) == len(self.numbers(shard)):
            write_shard(self.folder, shard, self._assembled(shard, begun))
            del self._begun[shard]
            self._written.add(shard)
            self._recount()
            self._write_meta(complete=False)

    @property
    def answered(self) -> int:
        """Requests so far, those of unwritten shards included."""
        return self.requests + sum(map(len, self._begun.values()))

    def close(self) -> None:
        """Say that the folder is complete. What comes behind a gap is removed.

        Raises:
            OSError: it cannot be written.
        """
        for shard in range(len(self._written), self._count):
            if shard in self._written:
                shard_path(self.folder, shard).unlink()
        self._written = {shard for shard in self._written if shard < len(self._written)}
        self._recount()
        self._write_meta(complete=True)

    @property
    def _count(self) -> int:
        return -(-len(self._sizes) // self._per_shard)

    def _another(self) -> InputError:
        return InputError(
            f"{self.folder} holds states of another collection (model, layers, prompts, seed or "
            "limits differ): give another folder with --out"
        )

    def _is_written(self, shard: int) -> bool:
        """Whether a shard is there, with the requests that it should have."""
        path = shard_path(self.folder, shard)
        if not path.exists():
            return False
        numbers = self.numbers(shard)
        try:
            with safe_open(path, framework="np") as tensors:
                sizes = tensors.get_tensor(TENSORS["prompt_tokens"])
                splits = tensors.get_tensor(TENSORS["split"])
        except (OSError, SafetensorError):
            return False  # damaged: collected again
        part = slice(numbers.start, numbers.start + len(sizes))
        same = np.array_equal(sizes, self._sizes[part]) and np.array_equal(
            splits, self.splits[part]
        )
        if len(sizes) > len(numbers) or not same:
            raise self._another()
        return len(sizes) == len(numbers)  # a last one of fewer requests is collected again

    def _recount(self) -> None:
        """Bring the totals in line with the shards that are there."""
        self.requests = sum(len(self.numbers(shard)) for shard in self._written)
        self.bytes = self.finished = self.states = 0
        for shard in self._written:
            path = shard_path(self.folder, shard)
            self.bytes += path.stat().st_size
            with safe_open(path, framework="np") as tensors:
                self.finished += int(tensors.get_tensor(TENSORS["finished"]).sum())
                self.states += int(tensors.get_slice(TENSORS["decode_age"]).get_shape()[0])

    def _assembled(self, shard: int, begun: dict[int, Answered]) -> Shard:
        numbers = self.numbers(shard)
        answers = [begun[number] for number in numbers]
        layers, hidden = len(self.meta.layers), self.meta.hidden_size
        nothing = np.full((layers, hidden), np.nan, np.float16)
        rows: list[int] = []
        ages: list[int] = []
        states = [np.empty((0, layers, hidden), np.float16)]
        for row, answer in enumerate(answers):
            for age, state in zip(answer.states.ages, answer.states.states, strict=True):
                if age < answer.length:  # an asynchronous engine computes one more
                    rows.append(row)
                    ages.append(age)
                    states.append(state[None])
        means = [answer.states.prompt_mean for answer in answers]
        lasts = [answer.states.prompt_last for answer in answers]
        return Shard(
            length=np.array([answer.length for answer in answers], np.int32),
            finished=np.array([answer.finished for answer in answers], np.bool_),
            split=self.splits[numbers.start : numbers.stop],
            prompt_tokens=self._sizes[numbers.start : numbers.stop],
            prompt_mean=np.stack([nothing if mean is None else mean for mean in means]),
            prompt_last=np.stack([nothing if last is None else last for last in lasts]),
            decode_request=np.array(rows, np.int32),
            decode_age=np.array(ages, np.int32),
            decode_states=np.concatenate(states),
        )

    def _write_meta(self, complete: bool) -> None:
        update = {"requests": self.requests, "complete": complete}
        self.meta = self.meta.model_copy(update=update)
        write_meta(self.folder, self.meta)


def _progress_of(meta: StatesMeta) -> dict[str, object]:
    """The fields that change while collecting, as they stand in `meta`."""
    return {"requests": meta.requests, "complete": meta.complete}
