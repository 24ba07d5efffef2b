"""Two engines of the same kind: with stock vLLM's scheduler, and with ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.support.engine_harness import SteppedEngine, build_scheduler
from lengthwise.vllm import Scheduler


def stock_and_ours(
    settings: Mapping[str, object], lag: int = 0, **limits: Any
) -> tuple[SteppedEngine, SteppedEngine]:
    """The two engines.

    Args:
        settings: ours.
        lag: 1 for asynchronous scheduling.
        limits: as `build_scheduler` takes them.
    """
    stock, ours = (
        build_scheduler(
            scheduler, asynchronous=bool(lag), lengthwise={"settings": settings}, **limits
        )
        for scheduler in (None, Scheduler)
    )
    return SteppedEngine(stock, lag), SteppedEngine(ours, lag)
