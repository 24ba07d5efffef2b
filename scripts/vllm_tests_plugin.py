"""A pytest plugin that puts Lengthwise's scheduler where vLLM's tests look for vLLM's."""

from __future__ import annotations

from typing import Any

# First of all: these tests choose the scheduler of diffusion models, which Lengthwise refuses.
from vllm.v1.core.sched import async_scheduler, diffusion_scheduler, scheduler  # noqa: F401

from lengthwise.vllm.scheduler import scheduler_class


def _with_settings(base: type) -> type:
    """Our class over one of vLLM's, told what a test's configuration does not say."""

    class Ours(scheduler_class(base)):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            vllm_config.additional_config = {"lengthwise": {"settings": {"policy": "fcfs"}}}
            super().__init__(vllm_config, *args, **kwargs)

    Ours.__name__ = base.__name__
    return Ours


# Before any test imports them.
scheduler.Scheduler = _with_settings(scheduler.Scheduler)
async_scheduler.AsyncScheduler = _with_settings(async_scheduler.AsyncScheduler)
