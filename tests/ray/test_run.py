"""`lengthwise serve --replicas`: what is refused, and what a replica is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

pytest.importorskip("vllm")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from lengthwise.cli.main import app
from lengthwise.errors import InputError, LengthwiseError
from lengthwise.serve.command import server_command
from lengthwise.serve.listen import free_port
from lengthwise.settings import Settings, parse_spec
from lengthwise.simulate.presets import parse_preset

EMULATED = ["serve", "--emulate", "a100:llama-3-8b", "--replicas", "2"]


def refusal(*arguments: str) -> str:
    result = CliRunner().invoke(app, [*EMULATED, *arguments, "--port", str(free_port())])
    assert isinstance(result.exception, InputError)
    return str(result.exception)


def test_without_ray_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "ray.serve", None)
    assert refusal() == "ray[serve] is not installed: pip install 'lengthwise[ray]'"


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--", "--api-server-count", "2"), "--api-server-count does not go with --replicas"),
        (("--", "--data-parallel-size", "2"), "--data-parallel-size does not go with --replicas"),
        (("--", "--ssl-keyfile", "key"), "--ssl-keyfile does not go with --replicas"),
        (("--", "--ssl-certfile", "c"), "--ssl-certfile does not go with --replicas"),
    ],
)
def test_what_ray_has_its_own_way_for_is_refused(
    flags: tuple[str, ...], says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert says in refusal(*flags)


def test_paused_requests_take_no_slot(tmp_path: Path) -> None:
    from lengthwise.ray.application import replica_arguments

    command = server_command(
        "reference",
        tmp_path / "settings.json",
        host="127.0.0.1",
        port=free_port(),
        flags=["--max-num-seqs", "8", "--max-num-active-seqs", "4"],
        emulate=parse_preset("a100:llama-3-8b"),
    )
    told = replica_arguments(command, Settings(predictor="declared"), 2, "reference")
    assert told.router is not None
    assert told.router["slots"] == 4


@pytest.mark.parametrize(("policy", "order"), [("fcfs", "arrival"), ("srpt", "shortest")])
def test_a_replica_is_what_one_server_would_be(policy: str, order: str, tmp_path: Path) -> None:
    from lengthwise.ray.application import replica_arguments

    settings = parse_spec(policy, Settings(predictor="build/p"))
    command = server_command(
        "reference",
        tmp_path / "settings.json",
        host="127.0.0.1",
        port=free_port(),
        flags=["--max-num-seqs", "4"],
        emulate=parse_preset("a100:llama-3-8b"),
    )
    told = replica_arguments(command, settings, 3, "reference")
    assert (told.model_id, told.replicas, told.cpus) == ("llama-3-8b", 3, 1.0)
    assert told.engine_kwargs["max_num_seqs"] == 4
    assert told.engine_kwargs["scheduler_cls"] == "lengthwise.vllm.Scheduler"
    ours = told.engine_kwargs["additional_config"]["lengthwise"]
    assert ours == {
        "settings": str(tmp_path / "settings.json"),
        "emulate": {"preset": "a100:llama-3-8b"},
    }
    assert not {"model", "port", "middleware"} & told.engine_kwargs.keys()
    assert (
        told.environment["RAYLLM_VLLM_ENGINE_CLS"]
        == "lengthwise.ray.emulated_engine.EmulatedEngine"
    )
    assert told.router == {
        "predictor": "build/p",
        "tokenizer": "reference",
        "slots": 4,
        "order": order,
    }


def test_a_node_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from lengthwise.ray import application

    def init(address: str | None = None, **options: object) -> None:
        raise ConnectionError if address else Exception("The current node timed out")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
    told = application.replica_arguments(
        server_command("reference", Path("settings.json"), host="127.0.0.1", port=free_port()),
        Settings(),
        2,
        "reference",
    )
    with pytest.raises(LengthwiseError, match="did not start the replicas: The current node"):
        application.Replicas(told, "127.0.0.1", free_port())
    assert not ray.is_initialized()
