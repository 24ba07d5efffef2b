"""What the scheduler says of itself: in the status file, in metrics, in its engine's file."""

from __future__ import annotations

import math
from typing import Any

from lengthwise.policy.step_time import batch_s
from lengthwise.telemetry.engine_file import EngineFile, EngineState, engines_folder


class Report:
    """Reads a scheduler, in threads of its own; changes nothing.

    Args:
        scheduler: with all its parts.
    """

    def __init__(self, scheduler: Any) -> None:
        self._scheduler = scheduler

    def status(self) -> dict[str, Any]:
        """What the status file says beside the settings in force and the counters."""
        here = self._scheduler
        settings, tau = here._settings, here._observers.tau
        # What is offered to an idle engine is taken up with its next request.
        same = settings.offered.source is settings.active.source
        shown = tau.tau if same else None
        shadow = settings.offered.shadow
        return {
            **(settings.offered.says() if settings.off else {}),
            "off": settings.off,
            "rolling_tau": None if shown is None else round(shown, 3),
            "below_tau_floor": tau.below_floor,
            "switched_off": dict(here._observers.contained.off),
            "shadow_estimate": None if shadow is None else shadow.estimate,
        }

    def numbers(self) -> EngineState:
        """The numbers of now, for metrics."""
        here = self._scheduler
        engine = here._settings.engine
        return EngineState(
            engine=engine.index,
            model_name=engine.model,
            policy=here._settings.active.settings.policy,
            counters=here.counters.snapshot(),
            gauges=self.gauges(),
            queue_times=here._observers.queue_times.snapshot(),
        )

    def gauges(self) -> dict[str, float]:
        """Present values, by name."""
        here = self._scheduler
        planner, tau = here._planner, here._observers.tau
        prices, shadow = planner.facts.step_time.counted, here._settings.offered.shadow
        return {
            "off": float(here._settings.off),
            "shadow": float(shadow is not None),
            "rolling_tau": math.nan if tau.tau is None else tau.tau,
            "below_tau_floor": float(tau.below_floor),
            "running_requests": float(len(here.running) - planner.paused_now),
            "paused_requests": float(planner.paused_now),
            "waiting_requests": float(len(here.waiting)),
            "step_decode_seconds": batch_s(prices, max(len(here.running), 1)),
            "prefill_token_seconds": float(prices["prefill_s"]),
            **({} if shadow is None else shadow.gauges()),
        }

    def in_file(self) -> EngineFile | None:
        """Keep the numbers in the file that an API server's /metrics reads, where it wants one."""
        folder = engines_folder()
        index = self._scheduler._settings.engine.index
        return None if folder is None else EngineFile(folder, self.numbers, index)
