"""The adapter that runs Lengthwise policies inside vLLM.

`Scheduler` is what `--scheduler-cls lengthwise.vllm.Scheduler` names. It is imported on first use,
so that settings can be read and written where vLLM is not installed.
"""

from __future__ import annotations

from typing import Any

__all__ = ["Scheduler"]


def __getattr__(name: str) -> Any:
    if name == "Scheduler":
        from lengthwise.vllm.scheduler import Scheduler

        return Scheduler
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
