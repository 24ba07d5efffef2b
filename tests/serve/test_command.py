"""What vLLM's server is started with, and what is refused before it starts."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
from itertools import pairwise
from pathlib import Path

import pytest

from lengthwise.errors import InputError
from lengthwise.serve.command import EXECUTOR, REFERENCE, ServerCommand, server_command
from lengthwise.serve.flags import require_same_address
from lengthwise.serve.listen import free_port, require_free_port
from lengthwise.settings import settings_of
from lengthwise.simulate.presets import parse_preset

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


def test_an_emulated_server_gets_the_defaults_of_the_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def emulated(*flags: str) -> ServerCommand:
        return server_command(
            REFERENCE,
            Path("/state/settings.json"),
            host="127.0.0.1",
            port=free_port(),
            flags=flags,
            emulate=parse_preset("a100:llama-3-8b"),
        )

    arguments = emulated().arguments
    assert value_of("--block-size", arguments) == ["16"]
    assert value_of("--max-num-seqs", arguments) == ["256"]
    assert value_of("--max-num-batched-tokens", arguments) == ["2048"]
    assert value_of("--max-model-len", arguments) == ["8192"]
    assert value_of("--distributed-executor-backend", arguments) == [EXECUTOR]
    (folder,) = value_of("--model", arguments)
    assert (Path(folder) / "config.json").is_file()
    (config,) = value_of("--additional-config", arguments)
    assert json.loads(config)["lengthwise"]["emulate"] == {"preset": "a100:llama-3-8b"}
    assert "VLLM_CPU_KVCACHE_SPACE" not in emulated().environment.keys() - os.environ.keys()

    given = emulated("--block_size=32", "--max-num-seqs", "8", "--served-model-name", "m").arguments
    assert value_of("--block-size", given) == []
    assert value_of("--max-num-seqs", given) == ["8"]
    assert value_of("--served-model-name", given) == ["m"]


@pytest.mark.parametrize(
    "flags",
    [
        ["--tensor-parallel-size=2"],
        ["--distributed-executor-backend=mp"],
        ["--worker-cls=w"],
        # other spellings
        ["-tp", "2"],
        ["--speculative-config.method", "2"],
        ["-sc", "2"],
    ],
    ids=" ".join,
)
def test_what_does_not_go_with_an_emulated_server_is_refused(flags: list[str]) -> None:
    with pytest.raises(InputError, match="does not go with --emulate"):
        server_command(
            REFERENCE,
            Path("/state/settings.json"),
            host="127.0.0.1",
            port=free_port(),
            flags=flags,
            emulate=parse_preset("a100:llama-3-8b"),
        )


def test_the_address_and_the_patience_are_told_by_the_flags() -> None:
    plain = command()
    assert (plain.url.split(":")[0], plain.shutdown_timeout_s) == ("http", 0.0)
    secured = command("--ssl-certfile", "c", "--ssl-keyfile=k", "--shutdown_timeout", "30")
    assert (secured.url.split(":")[0], secured.shutdown_timeout_s) == ("https", 30.0)
    assert command("--shutdown-timeout=5", "--shutdown-timeout=7").shutdown_timeout_s == 7.0
    assert command("--shutdown-timeout", "soon").shutdown_timeout_s == 0.0


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
        "lengthwise": {"settings": "$LENGTHWISE_SETTINGS"},
    }
    assert value_of("--seed", arguments) == ["3"]


def test_where_the_settings_are_is_no_part_of_what_vllm_compiles_by(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = []
    for folder in ("/state", "/elsewhere"):
        path = Path(folder) / "settings.json"
        built = server_command(REFERENCE, path, host="127.0.0.1", port=free_port())
        (config,) = value_of("--additional-config", built.arguments)
        told.append(config)
        monkeypatch.setenv("LENGTHWISE_SETTINGS", built.environment["LENGTHWISE_SETTINGS"])
        assert settings_of(json.loads(config)) == path
    assert told[0] == told[1]


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


@pytest.mark.parametrize("host", ["a..b", "a" * 64, "ä..b"])
def test_a_host_that_cannot_be_looked_up_is_refused(host: str) -> None:
    with pytest.raises(InputError, match=f"cannot listen on {host} port 8000"):
        require_free_port(host, 8000)


def test_clients_reach_a_server_on_all_addresses_by_loopback() -> None:
    assert ServerCommand([], {}, "0.0.0.0", 8000).url == "http://127.0.0.1:8000"
    assert ServerCommand([], {}, "::1", 8000).url == "http://[::1]:8000"


def test_what_a_file_of_vllms_options_says_is_no_less_said(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(
        "model: elsewhere\nmax_num_seqs: 4\nblock-size: 64\nenforce-eager: false\n"
        "shutdown-timeout: 30\nssl-certfile: c\nadditional-config:\n  theirs: 1\n"
    )
    built = command("--config", str(file), "--block-size", "128")
    for flag in ("--max-num-seqs", "--enforce-eager", "--shutdown-timeout"):
        assert flag not in built.arguments  # the file has it
    assert value_of("--block-size", built.arguments) == ["128"]
    assert (built.url.split(":")[0], built.shutdown_timeout_s) == ("https", 30.0)
    (config,) = value_of("--additional-config", built.arguments)
    assert json.loads(config)["theirs"] == 1
    assert "lengthwise" in json.loads(config)
    file.write_text("scheduler-cls: mine.Scheduler\n")
    with pytest.raises(InputError, match="--scheduler-cls cannot be passed on"):
        command("--config", str(file))


def test_a_file_that_vllm_would_ignore_or_not_read_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    with pytest.raises(InputError, match=r"c\.yaml: cannot be read: .*No such file"):
        command("--config", str(file))
    file.write_text("[1, 2")
    with pytest.raises(InputError, match=r"c\.yaml: cannot be read: while parsing"):
        command("--config", str(file))
    file.write_text("")
    with pytest.raises(InputError, match="it holds no options"):
        command("--config", str(file))
    with pytest.raises(InputError, match="vLLM ignores --config=FILE"):
        command(f"--config={file}")


def test_another_address_in_a_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("port: 12323\n")
    flags = ["--config", str(file)]
    with pytest.raises(InputError, match="--port 12323"):
        require_same_address(flags, "0.0.0.0", 8000)
    require_same_address(flags, "0.0.0.0", 12323)
    require_same_address([], "0.0.0.0", 8000)


def test_a_part_of_the_additional_configuration_does_not_replace_ours() -> None:
    with pytest.raises(InputError, match=r"^--additional-config\.theirs is a part of"):
        command("--additional-config.theirs=1")
