"""The Ray Serve application: an OpenAI ingress, and vLLM replicas with our scheduler.

It is Ray Serve LLM's own application (`ray.serve.llm.build_openai_app`). What is ours of it are two
values: vLLM's arguments `scheduler_cls` and `additional_config`, and the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from lengthwise.ray.arguments import Arguments
from lengthwise.serve.command import SETTINGS_VARIABLE

ROUTER: Final = "lengthwise.ray.PredictedWorkRouter"
SCHEDULER: Final = "lengthwise.vllm.Scheduler"
SERVER: Final = "lengthwise.ray.server.Server"


def build_app(arguments: Arguments | Mapping[str, Any]) -> serve.Application:
    """Put the application together; `serve.run` or a Serve config deploys it.

    Without `max_ongoing_requests` among the options of the deployment, requests wait in the
    replicas, where the scheduler orders them.
    """
    given = Arguments.model_validate(arguments)
    engine = dict(given.engine_kwargs)
    # What a replica needs is in its placement group; the actor itself only waits.
    deployment: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0}, **given.deployment}
    config: dict[str, Any] = {
        "model_loading_config": {
            "model_id": given.model_id,
            "model_source": given.model_source,
        },
        "engine_kwargs": engine,
        "deployment_config": deployment,
    }
    if engine.setdefault("scheduler_cls", SCHEDULER) == SCHEDULER:
        additional = engine.get("additional_config", {})
        ours = additional.get("lengthwise", {})
        settings = ours.get("settings", given.settings)
        if not isinstance(settings, str):  # inline: Serve brings them, and every change of them
            deployment.setdefault("user_config", settings or {})
            config["server_cls"] = SERVER
            settings = f"${SETTINGS_VARIABLE}"
        ours = {**ours, "settings": settings}
        engine["additional_config"] = {**additional, "lengthwise": ours}
    if "autoscaling_config" not in deployment:
        deployment["num_replicas"] = given.replicas
    if given.router is not None:
        deployment["request_router_config"] = {
            "request_router_class": ROUTER,
            "request_router_kwargs": given.router,
        }
    if given.environment:
        config["runtime_env"] = {"env_vars": given.environment}
    if given.cpus is not None:
        config["accelerator_config"] = {"kind": "cpu"}
        config["placement_group_config"] = {"bundles": [{"CPU": given.cpus}]}
    return build_openai_app(
        {
            "llm_configs": [LLMConfig(**config)],
            # One ingress, and so one router, knows all that it has sent.
            "ingress_deployment_config": {"num_replicas": 1},
        }
    )
