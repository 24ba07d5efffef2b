"""The manifests are what Kubernetes and Ray take; no cluster runs them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from lengthwise.cli.main import app
from lengthwise.settings import parse_settings

yaml: Any = pytest.importorskip("yaml", reason="PyYAML, which vLLM brings, is not installed")

ROOT = Path(__file__).parents[2]
MANIFESTS = sorted((ROOT / "deploy/kubernetes").glob("*.yaml"))
#: Of Kubernetes, for which the schemas are.
VERSION = "1.36"
SCHEMAS_KNOW = {"v1", "apps/v1"}


def documents() -> list[Any]:
    return [
        pytest.param(document, id=f"{path.stem}-{document['kind']}-{document['metadata']['name']}")
        for path in MANIFESTS
        for document in yaml.safe_load_all(path.read_text())
    ]


def pods(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs of all pods that a document asks for."""
    spec = document.get("spec", {})
    if document["kind"] == "Deployment":
        return [spec["template"]["spec"]]
    if document["kind"] == "RayService":
        cluster = spec["rayClusterConfig"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        return [group["template"]["spec"] for group in groups]
    return []


def valid(document: dict[str, Any]) -> None:
    kubernetes: Any = pytest.importorskip("kubernetes_validate")
    kubernetes.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("document", documents())
def test_schemas_take_it(document: dict[str, Any]) -> None:
    """Kubernetes' own kinds as they are; of a RayService every pod, as a pod."""
    if document["apiVersion"] in SCHEMAS_KNOW:
        valid(document)
    else:
        assert document["apiVersion"] == "ray.io/v1"
    for spec in pods(document):
        valid({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "pod"}, "spec": spec})


def test_a_wrong_manifest_is_refused() -> None:
    (document,) = (each.values[0] for each in documents() if each.id == "vllm-Deployment-llama")
    document["spec"]["template"]["spec"]["containers"][0]["port"] = 8000
    with pytest.raises(Exception, match="port"):
        valid(document)


@pytest.mark.parametrize("document", documents())
def test_what_is_mounted_is_there_and_services_find_their_pods(document: dict[str, Any]) -> None:
    for spec in pods(document):
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in spec["containers"]:
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
    everything = [each.values[0] for each in documents()]
    if document["kind"] == "Service":
        labels = [
            each["spec"]["template"]["metadata"]["labels"]
            for each in everything
            if each["kind"] == "Deployment"
        ]
        assert document["spec"]["selector"] in labels
    maps = {each["metadata"]["name"] for each in everything if each["kind"] == "ConfigMap"}
    for spec in pods(document):
        named = {volume["configMap"]["name"] for volume in spec["volumes"] if "configMap" in volume}
        assert named <= maps


@pytest.mark.parametrize("document", documents())
def test_settings_are_settings(document: dict[str, Any]) -> None:
    if document["kind"] == "ConfigMap":
        parse_settings(json.loads(document["data"]["settings.json"]))


@pytest.mark.parametrize("document", documents())
def test_flags_exist(document: dict[str, Any]) -> None:
    """Those of `lengthwise`; vLLM's own are its business."""
    if document["kind"] != "Deployment":
        return
    (container,) = pods(document)[0]["containers"]
    verb = container.get("command", ["lengthwise", "serve"])[1]
    command = get_command(app).commands[verb]  # type: ignore[attr-defined]
    known = {name for parameter in command.params for name in parameter.opts}
    theirs = {"--shutdown-timeout"} if verb == "serve" else set()
    given = {match[1] for text in container["args"] if (match := re.match(r"(--[\w-]+)", text))}
    assert given <= known | theirs


def test_ray_takes_its_part() -> None:
    """Serve's own schema of its config, and ours of the application's arguments."""
    pytest.importorskip("ray.serve", reason="Ray Serve is not installed")
    from ray.serve.schema import ServeDeploySchema

    from lengthwise.ray.application import build_app
    from lengthwise.ray.arguments import Arguments

    (service,) = (each.values[0] for each in documents() if "RayService" in each.id)
    config = ServeDeploySchema.model_validate(yaml.safe_load(service["spec"]["serveConfigV2"]))
    (application,) = config.applications
    module, name = application.import_path.split(":")
    assert (module, name) == (build_app.__module__, build_app.__name__)
    given = Arguments.model_validate(application.args)
    assert given.settings == "/etc/lengthwise/settings.json"
    workers = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    assert sum(group["replicas"] for group in workers) == given.replicas
