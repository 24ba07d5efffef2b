"""What may stand in vLLM's additional_config about hidden states."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from lengthwise.errors import InputError
from lengthwise.vllm.hidden_states import (
    CollectionWanted,
    ProbeWanted,
    require_layers,
    wanted_states,
)
from tests.support.made_up_probe import made_up_probe


@pytest.mark.parametrize("config", [None, {}, {"other": 1}, {"lengthwise": {"settings": "f"}}])
def test_nothing_is_wanted_unless_asked_for(config: Any) -> None:
    assert wanted_states(config) is None


def test_a_probe_and_a_collection() -> None:
    probe = wanted_states({"lengthwise": {"probe": {"folder": "p", "layers": [3]}}})
    assert isinstance(probe, ProbeWanted)
    assert (probe.folder, probe.layers, probe.interval) == ("p", (3,), 8)
    collection = wanted_states({"lengthwise": {"collect": {"layers": [0, 2], "seed": 5}}})
    assert collection == CollectionWanted(layers=(0, 2), seed=5)


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"probe": {"folder": "p"}}, "'probe.layers': Field required"),
        ({"probe": {"folder": "p", "layers": []}}, "'probe.layers'"),
        ({"probe": {"folder": "p", "layers": [3, 2]}}, "different numbers from 0, in order"),
        ({"probe": {"folder": "p", "layers": [2, 2]}}, "different numbers from 0, in order"),
        ({"collect": {"layers": [-1]}}, "different numbers from 0, in order"),
        ({"probe": {"folder": "p", "layers": [1], "interval": 0}}, "'probe.interval'"),
        ({"probe": {"folder": "p", "layers": [1], "intervall": 8}}, "did you mean 'interval'"),
        ({"probe": "build/probe"}, "'probe'"),
        ({"probe": {"folder": "p", "layers": [1]}, "collect": {"layers": [1]}}, "not both"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(ours: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        wanted_states({"lengthwise": ours})
    assert "\n" not in str(caught.value)


def test_layers_have_to_be_the_probes() -> None:
    probe = made_up_probe(layers=(1,))
    require_layers(probe, ProbeWanted(folder="p", layers=(1,)))
    with pytest.raises(InputError, match=r"reads the layers \[1\]"):
        require_layers(probe, ProbeWanted(folder="p", layers=(2,)))


def test_what_the_worker_loads_before_it_starts_is_free_of_numba() -> None:
    """vLLM's CPU platform looks through all that is imported, and fails on llvmlite."""
    pytest.importorskip("torch")
    loaded = subprocess.run(
        [
            sys.executable,
            "-c",
            "import lengthwise.vllm.probe_worker, sys; "
            "print(sorted({'numba', 'llvmlite', 'scipy'} & set(sys.modules)))",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout == "[]\n"
