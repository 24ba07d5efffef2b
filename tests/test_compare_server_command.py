"""What vLLM's server is started with, and what is refused before it starts."""

from __future__ import annotations

import importlib.util
import json
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from lengthwise.compare.server_command import (
    REFERENCE,
    ServerCommand,
    free_port,
    require_free_port,
    server_command,
)
from lengthwise.errors import InputError

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed"
)


def command(*flags: str, model: str = REFERENCE, port: int | None = None) -> ServerCommand:
    chosen = free_port() if port is None else port
    return server_command(
        model, Path("/state/settings.json"), host="127.0.0.1", port=chosen, flags=flags
    )


def value_of(flag: str, arguments: list[str]) -> list[str]:
    return [following for name, following in pairwise(arguments) if name == flag]


def test_the_reference_model_gets_defaults_that_flags_replace() -> None:
    assert value_of("--max-num-seqs", command().arguments) == ["16"]
    assert "--enforce-eager" in command().arguments
    given = command("--max_num_seqs=4", "--no-enforce-eager", "--block-size", "64").arguments
    assert "--max_num_seqs=4" in given
    assert value_of("--max-num-seqs", given) == []
    assert value_of("--block-size", given) == ["64"]
    assert "--enforce-eager" not in given


def test_other_models_get_no_defaults(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    arguments = command(model=str(tmp_path)).arguments
    assert value_of("--model", arguments) == [str(tmp_path)]
    assert "--max-model-len" not in arguments


def test_additional_config_of_the_user_is_kept() -> None:
    arguments = command("--additional-config", '{"theirs": 1}', "--seed", "3").arguments
    (config,) = value_of("--additional-config", arguments)
    assert json.loads(config) == {
        "theirs": 1,
        "lengthwise": {"settings": "/state/settings.json"},
    }
    assert value_of("--seed", arguments) == ["3"]


def test_the_environment_of_the_user_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_CPU_KVCACHE_SPACE", raising=False)
    assert command().environment["VLLM_CPU_KVCACHE_SPACE"] == "1"
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "3")
    assert command().environment["VLLM_CPU_KVCACHE_SPACE"] == "3"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--scheduler-cls", "mine.Scheduler"], "--scheduler-cls cannot be passed on"),
        (["--model=other"], "name the model as the first argument"),
        (["--additional-config", "{"], "not JSON"),
        (["--additional-config=[1]"], "must be a JSON object"),
        (["--additional-config", '{"lengthwise": {}}'], "--settings FILE"),
    ],
)
def test_flags_of_our_own_are_refused(flags: list[str], words: str) -> None:
    with pytest.raises(InputError, match=words):
        command(*flags)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        command(model=str(tmp_path))


def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(InputError, match=f"port {port}.*choose another with --port"):
            command(port=port)
    require_free_port("127.0.0.1", port)


def test_an_impossible_port_is_refused() -> None:
    with pytest.raises(InputError, match="99999"):
        command(port=99999)


def test_clients_reach_a_server_on_all_addresses_by_loopback() -> None:
    assert ServerCommand([], {}, "0.0.0.0", 8000).url == "http://127.0.0.1:8000"
    assert ServerCommand([], {}, "::1", 8000).url == "http://[::1]:8000"
