"""A folder of states while it is filled: whole shards, taken up again, and never mixed up."""

from __future__ import annotations

import errno
from pathlib import Path

import numpy as np
import pytest

from lengthwise.compare import state_collection
from lengthwise.compare.state_collection import Answered, ShardFolder
from lengthwise.errors import InputError
from lengthwise.probe.states import StatesMeta, open_states, shard_path
from lengthwise.vllm.state_collector import CollectedStates

COUNT, PER_SHARD = 10, 4
PLENTY = 2**30


def meta(**changes: object) -> StatesMeta:
    values: dict[str, object] = {
        "model": "made-up",
        "model_fingerprint": "abc",
        "hidden_size": 2,
        "layers": [0, 1],
        "layers_total": 1,
        "max_tokens": 50,
        "seed": 3,
        "requests": 0,
        "complete": False,
    }
    return StatesMeta.model_validate(values | changes)


def new_folder(path: Path, count: int = COUNT, about: StatesMeta | None = None) -> ShardFolder:
    sizes = np.arange(5, 5 + count, dtype=np.int32)
    splits = (np.arange(count) % 3).astype(np.int8)
    return ShardFolder(path, about or meta(), sizes, splits, PER_SHARD, 1000.0)


def answered(number: int) -> Answered:
    """An answer of 2 + number tokens with two states, the last of which it cannot have."""
    state = np.full((2, 2), number, np.float16)
    states = CollectedStates(state, state, [1, 2 + number], [state, state])
    return Answered(2 + number, finished=number % 2 == 0, states=states)


def fill(folder: ShardFolder, *shards: int) -> None:
    for shard in shards:
        assert folder.start(shard, PLENTY)
        for number in folder.numbers(shard):
            folder.add(number, answered(number))


def test_a_folder_holds_what_was_added(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    folder.open()
    fill(folder, *folder.missing())
    folder.close()
    states = open_states(tmp_path)
    assert states.meta.complete
    assert states.meta.requests == folder.requests == COUNT
    assert states.requests.length.tolist() == [2 + number for number in range(COUNT)]
    assert states.requests.split.tolist() == [number % 3 for number in range(COUNT)]
    assert states.requests.prompt_tokens.tolist() == list(range(5, 5 + COUNT))
    assert states.moments.age.tolist() == [1] * COUNT, "no state is as old as its answer is long"
    assert states.decode_states(1)[:, 0].tolist() == list(range(COUNT))
    assert (folder.finished, folder.states) == (5, COUNT)


def test_an_interrupted_run_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    first = new_folder(tmp_path)
    first.open()
    fill(first, 0)
    first.start(1, PLENTY)
    first.add(4, answered(4))
    with pytest.raises(InputError, match="interrupted"):
        open_states(tmp_path)
    kept = shard_path(tmp_path, 0).read_bytes()

    second = new_folder(tmp_path)
    second.open()
    assert second.missing() == [1, 2]
    assert second.requests == 4
    fill(second, 1, 2)
    second.close()
    assert shard_path(tmp_path, 0).read_bytes() == kept
    assert open_states(tmp_path).meta.requests == COUNT


def test_more_prompts_later_keep_whole_shards(tmp_path: Path) -> None:
    first = new_folder(tmp_path, count=6)
    first.open()
    fill(first, *first.missing())
    first.close()
    second = new_folder(tmp_path)
    second.open()
    assert second.missing() == [1, 2], "the second shard had two requests only"


@pytest.mark.parametrize(
    "change", [{"model_fingerprint": "b"}, {"layers": [1]}, {"seed": 4}, {"max_tokens": 9}]
)
def test_another_collection_is_not_mixed_in(tmp_path: Path, change: dict[str, object]) -> None:
    folder = new_folder(tmp_path)
    folder.open()
    fill(folder, 0)
    with pytest.raises(InputError, match="another collection"):
        new_folder(tmp_path, about=meta(**change)).open()


def test_other_prompts_are_not_mixed_in(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    folder.open()
    fill(folder, 0)
    other = ShardFolder(
        tmp_path, meta(), np.full(COUNT, 9, np.int32), np.zeros(COUNT, np.int8), PER_SHARD, 1.0
    )
    with pytest.raises(InputError, match="another collection"):
        other.open()


def test_a_damaged_shard_is_collected_again(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    folder.open()
    fill(folder, 0, 1)
    shard_path(tmp_path, 1).write_bytes(b"short")
    again = new_folder(tmp_path)
    again.open()
    assert again.missing() == [1, 2]


def test_the_limit_ends_it_between_shards(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    folder.open()
    with pytest.raises(InputError, match="max-gib is too small"):
        folder.start(0, 10)
    fill(folder, 0)
    assert not folder.start(1, folder.bytes + 10)
    folder.close()
    states = open_states(tmp_path)
    assert states.meta.complete
    assert states.meta.requests == 4


def test_what_lies_behind_a_gap_goes_when_the_limit_ends_it(tmp_path: Path) -> None:
    folder = new_folder(tmp_path)
    folder.open()
    fill(folder, 0, 2)  # the requests of shard 1 were still running when it was stopped
    again = new_folder(tmp_path)
    again.open()
    assert again.missing() == [1]
    assert not again.start(1, 10)
    again.close()
    assert open_states(tmp_path).meta.requests == 4


def test_a_full_disk_leaves_whole_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = new_folder(tmp_path)
    folder.open()
    fill(folder, 0)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state_collection, "write_shard", full)
    with pytest.raises(OSError, match="No space left"):
        fill(folder, 1)
    assert folder.requests == 4
    monkeypatch.undo()
    again = new_folder(tmp_path)
    again.open()
    assert again.missing() == [1, 2]
