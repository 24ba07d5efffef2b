"""Settings inline in an application: Serve brings them to a replica, and every change of them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("vllm")
pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

from lengthwise.emulate.model_folder import cached_model_folder
from lengthwise.simulate.presets import parse_preset
from tests.support.ray_nodes import started_twice
from tests.support.waiting import wait_until

PATIENCE_S = 240.0
EMULATED = "a100:llama-3-8b"
NAME = "test"


@pytest.fixture
def folder() -> Iterator[Path]:
    """With a short name: a socket's path has 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="lw-") as name:
        yield Path(name)


@pytest.mark.slow
def test_they_change_while_serving_and_what_is_refused_changes_nothing(folder: Path) -> None:
    """In an engine that is not started anew. A cluster, a replica and an engine take a minute."""
    import ray
    from ray import serve
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    arguments = {
        "model_id": "llama-3-8b",
        "model_source": str(cached_model_folder(parse_preset(EMULATED))),
        "engine_kwargs": {
            "max_num_seqs": 4,
            "max_model_len": 8192,
            "enforce_eager": True,
            "additional_config": {"lengthwise": {"emulate": {"preset": EMULATED}}},
        },
        "settings": {"policy": "srpt", "predictor": "declared"},
        "environment": {
            "RAYLLM_VLLM_ENGINE_CLS": "lengthwise.ray.emulated_engine.EmulatedEngine",
            "TMPDIR": str(folder),  # of its own file, with the status beside it
        },
        "cpus": 0.25,
    }

    def deploy(settings: dict[str, Any] | None) -> None:
        server = {"name": "Server:llama-3-8b", "user_config": settings}
        application = {
            "name": NAME,
            "import_path": "lengthwise.ray.application:build_app",
            "args": arguments,
            "deployments": [] if settings is None else [server],
        }
        schema = ServeDeploySchema.model_validate({"applications": [application]})
        _get_global_client().deploy_apps(schema)

    def status() -> dict[str, Any]:
        found = list(folder.glob("lengthwise-replica-*/settings.status.json"))
        value: dict[str, Any] = json.loads(found[0].read_text()) if found else {}
        return value

    def says(state: str, policy: str) -> dict[str, Any]:
        now = status()
        return now if (now.get("state"), now.get("policy")) == (state, policy) else {}

    started_twice(
        partial(
            ray.init,
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    )
    try:
        serve.start(proxy_location="Disabled")  # settings come without it
        deploy(None)
        first = wait_until(lambda: says("active", "srpt"), PATIENCE_S)
        deploy({"policy": "fcfs"})
        wait_until(lambda: says("active", "fcfs"), PATIENCE_S)
        deploy({"policy": "none of these"})
        refused = wait_until(lambda: says("refused", "fcfs"), PATIENCE_S)
        assert refused["pid"] == first["pid"]
        assert psutil.pid_exists(first["pid"])
    finally:
        serve.shutdown()
        ray.shutdown()
