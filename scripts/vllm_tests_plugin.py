"""A pytest plugin for vLLM's own tests: what they need here, and our scheduler in place of vLLM's.

Read by `vllm_tests.py`. The scheduler is exchanged where LENGTHWISE_TESTED is "ours".
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any, Final

# First of all: these tests choose the scheduler of diffusion models, which Lengthwise refuses.
from vllm.v1.core.sched import async_scheduler, diffusion_scheduler, scheduler  # noqa: F401

from lengthwise.vllm.scheduler import scheduler_class

_IMAGE_TOKENS: Final = 576  # of the multi-modal model that the tests name


def _budget(vllm_config: Any, registry: Any) -> SimpleNamespace:
    """vLLM's own budget for encoders, without the model's processor, which a hub would have."""
    from vllm.v1.core.encoder_cache_manager import compute_mm_encoder_budget

    tokens = {"image": _IMAGE_TOKENS}
    compute, cache = compute_mm_encoder_budget(vllm_config.scheduler_config, tokens)
    return SimpleNamespace(
        mm_max_toks_per_item=tokens, encoder_compute_budget=compute, encoder_cache_size=cache
    )


def _with_settings(base: type) -> type:
    """Our class over one of vLLM's, told what a test's configuration does not say."""

    class Ours(scheduler_class(base)):  # type: ignore[misc]
        def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
            vllm_config.additional_config = {"lengthwise": {"settings": {"policy": "fcfs"}}}
            super().__init__(vllm_config, *args, **kwargs)

    Ours.__name__ = base.__name__
    return Ours


scheduler.MultiModalBudget = _budget
if os.environ["LENGTHWISE_TESTED"] == "ours":
    # Before any test imports them.
    scheduler.Scheduler = _with_settings(scheduler.Scheduler)
    async_scheduler.AsyncScheduler = _with_settings(async_scheduler.AsyncScheduler)
