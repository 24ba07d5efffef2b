"""A folder of states that say, noisily, how much is still to come: quick to make and to learn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lengthwise.probe import filter_replay
from lengthwise.probe.states import TEST, TRAIN, VALID, Shard, StatesMeta, write_meta, write_shard

LAYERS = [0, 2, 3]
NOISE = {0: 3.0, 2: 0.5, 3: 1.5}  # layer 2 tells most
HIDDEN = 8
MAX_TOKENS = 256


def make_meta(requests: int, *, complete: bool = True) -> StatesMeta:
    return StatesMeta(
        model="made-up",
        model_fingerprint="abc",
        hidden_size=HIDDEN,
        layers=LAYERS,
        layers_total=4,
        max_tokens=MAX_TOKENS,
        seed=0,
        requests=requests,
        complete=complete,
    )


def make_shard(requests: int, seed: int, *, prompt_states: bool = False) -> Shard:
    """Answers whose states hold the logarithm of what remains, plus noise.

    The prompt's mean tells the length vaguely, its last token better.
    """
    random = np.random.default_rng(seed)
    length = np.clip(random.lognormal(3.2, 0.8, requests), 1, MAX_TOKENS).astype(np.int32)
    split = np.resize([TRAIN] * 6 + [VALID] * 2 + [TEST] * 2, requests).astype(np.int8)
    prompt_tokens = random.integers(3, 9, requests).astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(prompt_tokens)])

    def states_of(value: np.ndarray, noise: float) -> np.ndarray:
        value = np.log1p(value)[:, np.newaxis] + noise * random.normal(size=(value.size, 1))
        direction = np.linspace(-1, 2, HIDDEN)
        found = value * direction + 0.1 * random.normal(size=(value.size, HIDDEN)) + 5
        found[:, -1] = 3.0  # a unit that never changes
        return found

    request = np.repeat(np.arange(requests), np.maximum(length - 1, 0))
    age = np.concatenate([np.arange(1, each) for each in length])
    remaining = (length[request] - age).astype(float)
    shuffled = random.permutation(age.size)
    tokens = np.stack([states_of(np.repeat(length, prompt_tokens), 2.0) for _ in LAYERS], axis=1)
    return Shard(
        length=length,
        finished=length < MAX_TOKENS,
        split=split,
        prompt_tokens=prompt_tokens,
        prompt_mean=np.stack([states_of(length.astype(float), 1.6) for _ in LAYERS], axis=1).astype(
            np.float16
        ),
        prompt_last=np.stack([states_of(length.astype(float), 1.0) for _ in LAYERS], axis=1).astype(
            np.float16
        ),
        decode_request=request[shuffled].astype(np.int32),
        decode_age=age[shuffled].astype(np.int32),
        decode_states=np.stack([states_of(remaining, NOISE[layer]) for layer in LAYERS], axis=1)[
            shuffled
        ].astype(np.float16),
        prompt_states=tokens.astype(np.float16) if prompt_states else None,
        prompt_starts=starts.astype(np.int64) if prompt_states else None,
    )


def write_folder(
    folder: Path, *, shards: int = 2, each: int = 60, prompt_states: bool = False
) -> Path:
    folder.mkdir()
    for index in range(shards):
        write_shard(folder, index, make_shard(each, index, prompt_states=prompt_states))
    write_meta(folder, make_meta(shards * each))
    return folder


def coarsen(patched: pytest.MonkeyPatch) -> None:
    """Try few constants of the filter, at few intervals."""
    patched.setattr(filter_replay, "TEMPERS", (0.1, 0.4, 1.0))
    patched.setattr(filter_replay, "EPSILONS", (0.001, 0.03))
    patched.setattr(filter_replay, "CORRECTIONS", (0.0, 0.75))
    patched.setattr("lengthwise.probe.training.INTERVALS", (1, 8))
