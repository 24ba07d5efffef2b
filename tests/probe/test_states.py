"""The folder of hidden states: what is written comes back, and what is damaged is named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lengthwise.errors import InputError
from lengthwise.probe.state_rows import layer_rows
from lengthwise.probe.states import META, Shard, open_states, shard_path, write_meta, write_shard
from tests.support.synthetic_states import HIDDEN, LAYERS, make_meta, make_shard, write_folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "states", prompt_states=True)


def test_states_come_back_in_order_of_request_and_age(folder: Path) -> None:
    states = open_states(folder)
    shards = [make_shard(60, seed, prompt_states=True) for seed in (0, 1)]
    assert states.meta == make_meta(120)
    np.testing.assert_array_equal(
        states.requests.length, np.concatenate([shard.length for shard in shards])
    )
    request, age = states.moments
    assert (np.lexsort((age, request)) == np.arange(age.size)).all()
    for place, layer in enumerate(LAYERS):
        found = states.decode_states(layer)
        for first, shard in zip((0, 60), shards, strict=True):
            for row in range(0, age.size, 97):
                own = (shard.decode_request + first == request[row]) & (
                    shard.decode_age == age[row]
                )
                if own.any():
                    np.testing.assert_array_equal(found[row], shard.decode_states[own][0, place])
        np.testing.assert_array_equal(
            states.prompt_pooled(layer, "last"),
            np.concatenate([shard.prompt_last[:, place] for shard in shards]),
        )
        tokens = states.prompt_states(layer)
        assert tokens is not None
        assert tokens[0].shape == (tokens[1][-1], HIDDEN)
        np.testing.assert_array_equal(np.diff(tokens[1]), states.requests.prompt_tokens)


def test_prompt_states_may_be_missing(tmp_path: Path) -> None:
    assert open_states(write_folder(tmp_path / "s")).prompt_states(LAYERS[0]) is None


def test_states_that_are_not_finite_are_left_out_and_counted(tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    shard = make_shard(60, 0)
    shard.decode_states[[3, 5], 1, 0] = np.nan, np.inf
    lost = int(np.argmax(shard.length))
    shard.prompt_mean[lost, 1] = np.nan
    write_shard(folder, 0, shard)
    write_meta(folder, make_meta(60))
    states = open_states(folder)
    rows = layer_rows(states, [LAYERS[1]])
    broken = [3, 5] if lost not in shard.decode_request[[3, 5]] else []
    assert rows.dropped_requests == 1
    assert rows.dropped_states == len(broken)
    assert lost not in rows.request
    assert rows.age.size == shard.decode_age.size - (shard.length[lost] - 1) - len(broken)
    assert np.isfinite(rows.inputs).all()
    assert layer_rows(states, [LAYERS[0]]).dropped_requests == 0
    assert layer_rows(states, LAYERS).inputs.shape[1] == 3 * HIDDEN


def damage(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        write_shard(folder, 1, make_shard(60, 1)._replace(**changes))  # type: ignore[arg-type]

    return apply


def truncate(folder: Path) -> None:
    path = shard_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-1000])


def older_than_long(folder: Path) -> None:
    shard = make_shard(60, 1)
    shard.decode_age[0] = 10_000
    write_shard(folder, 1, shard)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / META).unlink(), "holds no meta.json"),
        (lambda folder: (folder / META).write_text("{"), "is damaged"),
        (lambda folder: (folder / META).write_text('{"schema": "other/1"}'), "is damaged"),
        (lambda folder: write_meta(folder, make_meta(120, complete=False)), "was interrupted"),
        (lambda folder: write_meta(folder, make_meta(121)), "counts 121 requests"),
        (lambda folder: shard_path(folder, 0).unlink(), "a shard is missing"),
        (lambda folder: shard_path(folder, 1).unlink(), "the shards hold 60"),
        (truncate, "is damaged"),
        (older_than_long, "older than its answer"),
        (damage(length=np.zeros(3, np.int32)), "do not fit"),
        (damage(split=np.full(60, 7, np.int8)), "split unknown"),
        (damage(decode_states=np.zeros((5, 3, HIDDEN), np.float16)), "do not fit"),
        (damage(prompt_mean=np.zeros((60, 3, 4), np.float16)), "do not fit"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(InputError, match=message) as refusal:
        open_states(folder)
    assert "\n" not in str(refusal.value)


def test_a_layer_that_is_not_stored_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match="no states of layer 1: it has 0, 2, 3"):
        open_states(folder).decode_states(1)


def test_a_failed_write_leaves_no_half_shard(tmp_path: Path) -> None:
    shard = make_shard(60, 0)
    write_shard(tmp_path, 0, shard)
    whole = shard_path(tmp_path, 0).read_bytes()
    broken: Shard = shard._replace(length=np.array([object()]))
    with pytest.raises(Exception):  # noqa: B017, PT011
        write_shard(tmp_path, 0, broken)
    assert shard_path(tmp_path, 0).read_bytes() == whole
    assert [path.name for path in tmp_path.iterdir()] == ["shard-00000.safetensors"]
