"""The adapter that runs Lengthwise policies inside vLLM.

`Scheduler` is what `--scheduler-cls lengthwise.vllm.Scheduler` names, and `Worker` what
`--worker-cls lengthwise.vllm.Worker` does, for predictions from hidden states. `Metrics` is for
`--middleware lengthwise.vllm.Metrics`. They are imported on first use, so that a worker need not
load what a scheduler does.

scheduler        the adapter, in the order of a request's life
queue            vLLM's waiting queue, served in the order of a policy
plan             the pre-pass in front of a step: what is decided is carried out
engine_facts     what is known of the engine, and what a planned step does
predictions      each request's prediction: of a predictor, at once or in a worker, and of the probe
live_settings    what settings name, opened, and how they change while serving
observers        who is told what becomes of requests and steps, and what is said
shadow           what the policy would have made of what is served
compat           every name of vLLM that is not public

hidden_states    what is wanted of the model's hidden states; how predictions reach the scheduler
probe_worker     vLLM's worker, made to show them
step_states      which of a step's rows belong to what, and what the probe reads in them
state_collector  states kept for training
"""

from __future__ import annotations

from typing import Any

__all__ = ["Metrics", "Scheduler", "Worker"]


def __getattr__(name: str) -> Any:
    if name == "Scheduler":
        from lengthwise.vllm.scheduler import Scheduler

        return Scheduler
    if name == "Worker":
        from lengthwise.vllm.probe_worker import worker_class

        return worker_class()
    if name == "Metrics":
        from lengthwise.telemetry.prometheus import Metrics

        return Metrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
