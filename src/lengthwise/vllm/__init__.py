"""The adapter that runs Lengthwise policies inside vLLM.

`Scheduler` is what `--scheduler-cls lengthwise.vllm.Scheduler` names, and `Worker` what
`--worker-cls lengthwise.vllm.Worker` does, for predictions from hidden states. `Metrics` is for
`--middleware lengthwise.vllm.Metrics`. They are imported on first use, so that settings can be read
and written where vLLM is not installed.
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
        from lengthwise.telemetry.metrics_page import Metrics

        return Metrics
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
