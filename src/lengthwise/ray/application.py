"""The Ray Serve application: an OpenAI ingress, and vLLM replicas with our scheduler.

It is Ray Serve LLM's own application (`ray.serve.llm.build_openai_app`). What is ours of it are two
values: vLLM's arguments `scheduler_cls` and `additional_config`, and the router.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

ROUTER = "lengthwise.ray.PredictedWorkRouter"
SCHEDULER = "lengthwise.vllm.Scheduler"


def build_app(
    model_id: str,
    model_source: str,
    *,
    replicas: int,
    engine_kwargs: Mapping[str, Any],
    settings: str | Mapping[str, Any] | None = None,
    router: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    cpus: float | None = None,
    max_ongoing_requests: int | None = None,
) -> serve.Application:
    """Put the application together; `serve.run` deploys it.

    Args:
        model_id: the name by which clients ask for the model.
        model_source: a folder on every node, or a hub's name.
        replicas: how many.
        engine_kwargs: vLLM's arguments. Where they name a `scheduler_cls`, `settings` is left out.
        settings: what the scheduler of every replica goes by: a settings file on every node, which
            is watched, or settings inline, which are not.
        router: arguments of `PredictedWorkRouter.initialize_state`; None for Serve's own router.
        environment: variables for the replicas.
        cpus: CPU cores that a replica asks for instead of a GPU.
        max_ongoing_requests: of one replica, beyond which requests wait in the router; None for no
            bound, so that they wait where the scheduler orders them.
    """
    arguments = dict(engine_kwargs)
    if "scheduler_cls" not in arguments:
        arguments["scheduler_cls"] = SCHEDULER
        arguments["additional_config"] = {"lengthwise": {"settings": settings or {}}}
    deployment: dict[str, Any] = {
        "num_replicas": replicas,
        # What a replica needs is in its placement group; the actor itself only waits.
        "ray_actor_options": {"num_cpus": 0},
    }
    if max_ongoing_requests is not None:
        deployment["max_ongoing_requests"] = max_ongoing_requests
    if router is not None:
        deployment["request_router_config"] = {
            "request_router_class": ROUTER,
            "request_router_kwargs": dict(router),
        }
    config: dict[str, Any] = {
        "model_loading_config": {"model_id": model_id, "model_source": model_source},
        "engine_kwargs": arguments,
        "deployment_config": deployment,
        "log_engine_metrics": True,
    }
    if environment:
        config["runtime_env"] = {"env_vars": dict(environment)}
    if cpus is not None:
        config["accelerator_config"] = {"kind": "cpu"}
        config["placement_group_config"] = {"bundles": [{"CPU": cpus}]}
    return build_openai_app(
        {
            "llm_configs": [LLMConfig(**config)],
            # One ingress, and so one router, knows all that it has sent.
            "ingress_deployment_config": {"num_replicas": 1},
        }
    )
