"""A probe as a folder: it comes back as it was, and what does not fit is refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from lengthwise.errors import InputError
from lengthwise.probe import Probe
from lengthwise.probe.probe_folder import Metadata, Network, Refinement, Training
from lengthwise.probe.refine import geometric_edges

BINS, HIDDEN, LAYERS = 6, 4, [1, 3]


def network(seed: int, bins: int = BINS) -> Network:
    random = np.random.default_rng(seed)

    def some(*shape: int) -> np.ndarray:
        return random.normal(size=shape).astype(np.float32)

    return Network(some(len(LAYERS) * HIDDEN, 16), some(16), some(16, bins), some(bins))


def metadata(**changes: Any) -> Metadata:
    known: dict[str, Any] = {
        "model": "made-up",
        "model_fingerprint": "abc",
        "hidden_size": HIDDEN,
        "layers": LAYERS,
        "layers_total": 4,
        "max_tokens": 100,
        "bins": "geometric",
        "pooling": "last",
        "refinement": [
            Refinement(interval=1, temper=0.2, epsilon=0.01),
            Refinement(interval=8, temper=0.7, epsilon=0.1, correction=0.5, stretch=1.5),
        ],
        "training": Training(
            requests=9,
            states=99,
            dropped_states=1,
            dropped_requests=0,
            seed=0,
            seconds=1.5,
            trained_at="2026-01-02T03:04:05+00:00",
        ),
        "metrics": {"mae_raw": 3.25, "mae_refined": 2.5},
    }
    return Metadata(**known | changes)


@pytest.fixture
def probe() -> Probe:
    rates = np.arange(1, BINS + 1) / 21
    return Probe(metadata(), geometric_edges(100, BINS), network(0), network(1), rates)


@pytest.fixture
def folder(probe: Probe, tmp_path: Path) -> Path:
    probe.save(tmp_path / "p")
    return tmp_path / "p"


def test_it_comes_back_as_it_was(probe: Probe, folder: Path) -> None:
    again = Probe.load(folder)
    assert again.metadata == probe.metadata
    np.testing.assert_array_equal(again.edges, probe.edges)
    np.testing.assert_array_equal(again.base_rates, probe.base_rates)
    for name in ("decode", "prompt"):
        for mine, theirs in zip(getattr(again, name), getattr(probe, name), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    assert sorted(path.name for path in folder.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    card = (folder / "README.md").read_text()
    assert "| this probe, refined from token to token | 2.5 |" in card
    assert "output after layer 1, 3 of 4" in card


def test_the_filter_is_that_of_the_nearest_interval(probe: Probe) -> None:
    assert probe.filter().temper == 0.2
    assert probe.filter(2).epsilon == 0.01
    assert probe.filter(100).temper == 0.7
    assert probe.filter(8) is probe.filter(7)
    np.testing.assert_array_equal(probe.filter().edges, probe.edges)
    np.testing.assert_array_equal(probe.filter().base, 1)  # correction 0: as in the paper
    np.testing.assert_allclose(probe.filter(8).base, np.sqrt(probe.base_rates))
    assert probe.filter(8).stretch == 1.5


@pytest.mark.parametrize(
    ("served", "message"),
    [
        ({"hidden_size": 5}, "hidden size 4.*hidden size is 5"),
        ({"layers_total": 12}, "number of layers 4.*is 12"),
        ({"model_fingerprint": "xyz"}, "fingerprint abc.*is xyz"),
    ],
)
def test_another_model_is_refused(probe: Probe, served: dict[str, Any], message: str) -> None:
    probe.check(model_fingerprint="abc", hidden_size=4, layers_total=4)
    probe.check()
    with pytest.raises(InputError, match=message):
        probe.check(**served)


def edit_config(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


def edit_tensor(name: str, array: np.ndarray | None) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        if array is None:
            del tensors[name]
        else:
            tensors[name] = array
        save_file(tensors, folder / "model.safetensors")

    return apply


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "is damaged"),
        (lambda folder: (folder / "model.safetensors").unlink(), "the file is missing"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"no"), "is damaged"),
        (edit_config(schema="lengthwise.predictor/1"), "is no probe"),
        (edit_config(schema="lengthwise.probe/99"), "newer Lengthwise"),
        (edit_config(schema="lengthwise.probe/1"), "older Lengthwise"),
        (edit_config(bins="odd"), "is damaged"),
        (edit_config(refinement=[]), "is damaged"),
        (edit_config(layers=[1]), "does not fit 1 layers of width 4 and 6 bins"),
        (edit_config(layers=[1, 9]), "layer out of range 0 to 4"),
        (edit_config(hidden_size=5), "does not fit"),
        (edit_config(pooling="attention"), "is damaged"),
        (edit_tensor("edges", None), "tensor edges is missing"),
        (edit_tensor("decode.first", None), "tensor decode.first is missing"),
        (edit_tensor("edges", np.linspace(0, 100, 6)), "does not fit"),
        (edit_tensor("edges", np.linspace(0, 3, 7)), "do not ascend"),
        (edit_tensor("edges", np.linspace(1, 100, 7)), "do not ascend"),
        (edit_tensor("decode.second_bias", np.full(6, np.nan, np.float32)), "not finite"),
        (edit_tensor("prompt.second", np.zeros((16, 6))), "prompt network does not fit"),
        (edit_tensor("base_rates", None), "tensor base_rates is missing"),
        (edit_tensor("base_rates", np.ones(5)), "base rates have another type or shape"),
        (edit_tensor("base_rates", np.array([1, 1, 1, 0, 1, 1.0])), "base rate is not above 0"),
    ],
)
def test_what_is_damaged_is_said_in_one_line(
    folder: Path, change: Callable[[Path], object], message: str
) -> None:
    change(folder)
    with pytest.raises(InputError, match=message) as refusal:
        Probe.load(folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist: give a folder written by lengthwise"):
        Probe.load(tmp_path / "none")


def test_the_torch_network_is_the_plain_formula(probe: Probe) -> None:
    torch = pytest.importorskip("torch")
    from lengthwise.probe.fit import ProbeNetwork

    states = np.random.default_rng(3).normal(size=(5, 8)).astype(np.float16)
    states[4] = np.nan
    first, first_bias, second, second_bias = (each.astype(np.float64) for each in probe.decode)
    scores = np.maximum(states.astype(np.float64) @ first + first_bias, 0) @ second + second_bias
    expected = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    module = ProbeNetwork(probe.decode)
    found = module(torch.from_numpy(states))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy()[:4], expected[:4], rtol=1e-4)
    assert np.isnan(found.numpy()[4]).all()
    assert not found.requires_grad
    assert list(module.parameters()) == []
