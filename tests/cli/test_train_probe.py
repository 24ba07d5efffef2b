"""The verb `train-probe`, from the command line to its output and exit codes."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="torch is not installed")

import lengthwise.probe.training
from lengthwise.errors import InputError
from lengthwise.probe import Probe
from lengthwise.probe.fit import Recipe
from lengthwise.probe.states import shard_path, write_meta, write_shard
from tests.support.command_line import Command, Run
from tests.support.synthetic_states import make_meta, make_shard, write_folder

METHODS = ("prompt_only", "reestimated", "raw", "refined")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = Recipe(hidden=16, epochs=2, batch=64)
    monkeypatch.setattr(lengthwise.probe.training, "Recipe", lambda: quick)


@pytest.fixture
def states(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "states")


@pytest.fixture
def command(run: Run) -> Command:
    return Command(run, "train-probe")


@pytest.mark.parametrize("bins", ["equal", "geometric"])
def test_json_has_the_errors_by_layer_and_age(
    command: Command, states: Path, tmp_path: Path, bins: str
) -> None:
    out = tmp_path / "p"
    code, text, err = command(states, "--layer", "auto", "--bins", bins, "--out", out, "--json")
    assert code == 0, err
    found = json.loads(text)
    for name in METHODS:
        assert found[f"mae_{name}_low"] <= found[f"mae_{name}"] <= found[f"mae_{name}_high"]
        assert all(f"mae_{name}" in row for row in found["by_age_decile"])
    assert [row["layer"] for row in found["by_layer"]] == [0, 2, 3]
    assert found["bins"] == bins
    assert len(found["edges"]) == {"equal": 10, "geometric": 20}[bins] + 1
    assert Probe.load(out).metadata.layers == found["layers"]
    assert "<svg" in (out / "layers.svg").read_text()
    assert "training" in err


def test_tables_say_it_in_words(command: Command, states: Path, tmp_path: Path) -> None:
    code, text, err = command(states, "--layer", "2,3", "--count", 5, "--out", tmp_path / "p")
    assert code == 0, err
    assert "layer 2, 3 of made-up, 5 geometric bins" in text
    for words in ("Prompt only, counted down", "Probe, refined", "Age"):
        assert words in text
    assert not (tmp_path / "p" / "layers.svg").exists()


def test_what_is_left_out_is_said(command: Command, tmp_path: Path) -> None:
    folder = tmp_path / "s"
    folder.mkdir()
    shard = make_shard(120, 0)
    shard.decode_states[7, :, 1] = np.nan
    write_shard(folder, 0, shard)
    write_meta(folder, make_meta(120))
    code, text, err = command(folder, "--layer", "2", "--out", tmp_path / "p")
    assert code == 0, err
    assert "left out because they are not finite: 1 states, 0 requests" in text


def test_bad_input_ends_in_one_line(command: Command, states: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "p")
    assert "holds no meta.json" in command.refusal(tmp_path / "none", *out)
    assert "no states of layer 9: it has 0, 2, 3" in command.refusal(states, "--layer", 9, *out)
    assert "give auto, a number" in command.refusal(states, "--layer", "first", *out)
    assert "distinct numbers" in command.refusal(states, "--layer", "2,2", *out)
    assert "give fewer bins" in command.refusal(states, "--count", 5000, *out)
    assert "Invalid value" in command.refusal(states, "--bins", "odd", *out)
    (tmp_path / "file").write_text("")
    assert "cannot write" in command.refusal(states, "--layer", 2, "--out", tmp_path / "file" / "p")
    shard_path(states, 1).write_bytes(b"")
    assert "is damaged" in command.refusal(states, *out)
    write_meta(states, make_meta(120, complete=False))
    assert "run the same lengthwise collect again" in command.refusal(states, *out)


def test_without_torch_it_says_what_to_install(
    command: Command, states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "lengthwise.probe.training")
    monkeypatch.delitem(sys.modules, "lengthwise.probe.fit")
    refusal = command.refusal(states, "--out", tmp_path / "p")
    assert refusal.endswith("torch is not installed: pip install 'lengthwise[probe]'")


def test_an_interrupted_training_goes_on(
    command: Command, states: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "p"
    train = lengthwise.probe.training

    def fail(*_arguments: object, **_keywords: object) -> None:
        raise InputError("stopped here")

    with monkeypatch.context() as patched:
        patched.setattr(train, "fit_reestimate", fail)
        command.refusal(states, "--layer", "auto", "--out", out)
    kept = {path: path.stat().st_mtime_ns for path in (out / "checkpoints").iterdir()}
    assert len(kept) == 5  # three layers, two poolings
    with monkeypatch.context() as patched:
        patched.setattr(train, "fit_reestimate", fail)
        command.refusal(states, "--layer", "auto", "--out", out)
    assert kept == {path: path.stat().st_mtime_ns for path in (out / "checkpoints").iterdir()}
    code, _, err = command(states, "--layer", "auto", "--out", out)
    assert code == 0, err
    assert not (out / "checkpoints").exists()
