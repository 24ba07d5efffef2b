"""The Ray Serve application, and `lengthwise serve --replicas N`, which starts it.

The application is an OpenAI ingress, and vLLM replicas with our scheduler: Ray Serve LLM's own
(`ray.serve.llm.build_openai_app`). What is ours of it are two values, vLLM's arguments
`scheduler_cls` and `additional_config`, and the router.

`lengthwise serve --replicas N` makes them from the command of one server, deploys the application
and takes it away again.
"""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Mapping
from typing import Any, Final

import ray
from ray import serve
from ray.serve.llm import LLMConfig, build_openai_app

from lengthwise.emulate.pace import EMULATE
from lengthwise.errors import InputError, LengthwiseError, one_line
from lengthwise.predict.load import NO_PREDICTOR
from lengthwise.processes import Stoppable, ignored
from lengthwise.ray.arguments import Arguments
from lengthwise.serve.command import SETTINGS_VARIABLE, ServerCommand
from lengthwise.settings import Settings
from lengthwise.vllm.compat.serving import given_arguments, runs_on_cpu

ROUTER: Final = "lengthwise.ray.PredictedWorkRouter"
SCHEDULER: Final = "lengthwise.vllm.Scheduler"
SERVER: Final = "lengthwise.ray.server.Server"

_NAME: Final = "lengthwise"  # of the application
_ENGINE: Final = "lengthwise.ray.emulated_engine.EmulatedEngine"
_ENGINE_VARIABLE: Final = "RAYLLM_VLLM_ENGINE_CLS"  # Ray Serve LLM's own
_SLOTS: Final = 256  # vLLM's own choice of --max-num-seqs, roughly
#: Ray's own. It kills a proxy that takes over 5 s to start, as on a busy machine, and begins anew.
_PROXY_VARIABLE: Final = "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"
_PROXY_PATIENCE_S: Final = "60"
_SPARE_CPUS: Final = 2  # for the ingress and whatever else Ray runs
#: What belongs to a server of one engine, which Ray has its own ways for.
_NOT_THE_ENGINES: Final = ("model", "host", "port", "served_model_name", "middleware")
_NOT_WITH_REPLICAS: Final = {
    "worker_cls": "leave --probe out: Ray has its own workers",
    "api_server_count": "the ingress is Ray's",
    "data_parallel_size": "--replicas is the number of engines",
    **dict.fromkeys(
        ("ssl_certfile", "ssl_keyfile"), "Ray's proxy speaks no TLS; put one before it that does"
    ),
}


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


def replica_arguments(
    command: ServerCommand, settings: Settings, replicas: int, model: str
) -> Arguments:
    """What `build_app` is to be told so that each replica is what the command would start.

    Args:
        command: of one server.
        settings: those that the command's settings file holds.
        replicas: how many.
        model: folder or name whose tokenizer the router takes.

    Raises:
        InputError: something in the command does not go with several replicas.
    """
    given = given_arguments(command.arguments)
    for name, instead in _NOT_WITH_REPLICAS.items():
        if name in given:
            raise InputError(f"--{name.replace('_', '-')} does not go with --replicas: {instead}")
    served = given.get("served_model_name") or [given["model"]]
    emulated = EMULATE in given["additional_config"]["lengthwise"]
    path = command.environment[SETTINGS_VARIABLE]
    ours = {**given["additional_config"]["lengthwise"], "settings": path}
    given["additional_config"] = {**given["additional_config"], "lengthwise": ours}
    engine = {name: value for name, value in given.items() if name not in _NOT_THE_ENGINES}
    environment = {
        name: text for name, text in command.environment.items() if os.environ.get(name) != text
    }
    if emulated:
        del engine["distributed_executor_backend"]
        environment[_ENGINE_VARIABLE] = _ENGINE
    predictor = settings.predictor
    # With pauses vLLM holds more requests than run at once.
    slots = given.get("max_num_active_seqs") or given.get("max_num_seqs") or _SLOTS
    return Arguments(
        model_id=served[0],
        model_source=given["model"],
        replicas=replicas,
        engine_kwargs=engine,
        environment=environment,
        cpus=1.0 if emulated or runs_on_cpu() else None,
        router={
            "predictor": "declared" if predictor in (None, NO_PREDICTOR) else predictor,
            "tokenizer": model,
            "slots": slots,
            "order": "arrival" if settings.policy == "fcfs" or settings.shadow else "shortest",
        },
    )


class Replicas(Stoppable):
    """Deployed replicas; a context manager that takes them away again."""

    def __init__(self, arguments: Arguments, host: str, port: int) -> None:
        """Deploy on the cluster that is there, or on one that is begun on this machine.

        Args:
            arguments: of `build_app`.
            host: address that Ray's proxy listens on.
            port: its TCP port.

        Raises:
            LengthwiseError: Ray could not start them; one line, and where its logs are.
        """
        # Each start of theirs is a screenful.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        polite_end = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address="auto", log_to_driver=False, logging_level="ERROR")
            self._own_cluster = False
        except ConnectionError:
            self._own_cluster = True
        try:
            if self._own_cluster:
                os.environ.setdefault(_PROXY_VARIABLE, _PROXY_PATIENCE_S)
                ray.init(
                    num_cpus=max(os.cpu_count() or 1, arguments.replicas + _SPARE_CPUS),
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level="ERROR",
                )
            signal.signal(signal.SIGTERM, polite_end)  # Ray's own ends us on the spot
            serve.start(http_options={"host": host, "port": port})
            serve.run(build_app(arguments), name=_NAME)
        except BaseException as error:
            self.stop()
            if isinstance(error, Exception):
                raise LengthwiseError(
                    f"Ray Serve did not start the replicas: {one_line(error)} (its logs: "
                    "/tmp/ray/session_latest/logs)"
                ) from error
            raise

    def wait(self) -> None:
        """Wait until somebody interrupts.

        Raises:
            LengthwiseError: the application is gone, or cannot be had back.
        """
        while True:
            time.sleep(1.0)
            application = serve.status().applications.get(_NAME)
            if application is None:
                raise LengthwiseError("somebody has deleted the application")
            if application.status == "DEPLOY_FAILED":
                raise LengthwiseError(f"the replicas failed: {one_line(application.message)}")

    def stop(self) -> None:
        """Take the application away, and a cluster that was begun for it."""
        if not ray.is_initialized():
            return  # Serve would begin a cluster to look into
        with ignored(signal.SIGINT, signal.SIGTERM):
            if self._own_cluster:
                serve.shutdown()
            else:
                serve.delete(_NAME)
            ray.shutdown()
