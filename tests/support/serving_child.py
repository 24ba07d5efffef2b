"""Serves requests under many settings, and prints what was compiled, or loaded, in a step.

Run in a process of its own, since what another test has used is there already: `test_compile`.
"""

from __future__ import annotations

import tempfile
import threading
import traceback
from pathlib import Path
from typing import Any

import numba.core.event as numba_events

from bench.support.engine_harness import Ask, SteppedEngine, build_scheduler
from lengthwise.settings import parse_settings
from lengthwise.vllm import Scheduler
from lengthwise.vllm.hidden_states import WORKER
from tests.support.made_up_probe import made_up_probe
from tests.support.probed_engine import ProbedEngine

GUARDS: dict[str, Any] = {
    "pausing": "auto",
    "peek": "auto",
    "preemption": "greedy",
    "memory_growth": 1.0,
    "blend": 0.9,
    "starvation_threshold": 3,
    "max_wait_s": 1.0,
    "max_lead": 1.0,
    "max_tenant_lead": 1000.0,
    "service_time": True,
    "client_priority": True,
}
WATCHES = ("record", "journal", "length_log")


class InSteps(numba_events.Listener):  # type: ignore[misc]
    """Notes who asks numba's compiler for anything while requests are served."""

    def __init__(self) -> None:
        self.serving = False
        self.seen: list[str] = []

    def on_start(self, event: Any) -> None:
        if self.serving and threading.current_thread() is threading.main_thread():
            ours = [f for f in traceback.extract_stack() if "/lengthwise/" in f.filename]
            self.seen.append(f"{Path(ours[-1].filename).name}:{ours[-1].lineno}")

    def on_end(self, event: Any) -> None:
        pass


def serve(engine: SteppedEngine, settings: dict[str, Any], listener: InSteps) -> None:
    engine.scheduler._settings.offer(
        parse_settings({"predictor": "declared", "tau_floor": None} | settings)
    )
    listener.serving = True
    begun = len(engine.finished)
    for number in range(begun, begun + 14):
        said = {"lengthwise_expected_tokens": 3 + 17 * number % 60}
        prompt = [2 + number] * (20 + number % 3)
        engine.add(Ask(str(number), prompt, 3 + 17 * number % 60, priority=number % 2, hints=said))
        engine.step()
    engine.run()
    listener.serving = False
    engine.scheduler._settings.settle()


def main() -> None:
    """Policies with and without guards: preempted without a probe, paused with one and a lag."""
    listener = InSteps()
    numba_events.register("numba:compiler_lock", listener)
    with tempfile.TemporaryDirectory() as folder:
        made_up_probe().save(Path(folder) / "probe")
        probe = {"folder": f"{folder}/probe", "layers": [1], "interval": 1}
        limits: dict[str, Any] = {"max_num_seqs": 3, "num_blocks": 13}
        plain = build_scheduler(Scheduler, lengthwise={"settings": {}}, **limits)
        limits |= {"max_num_seqs": 9, "max_num_active_seqs": 3, "asynchronous": True}
        ours = {"settings": {}, "probe": probe}
        probed = build_scheduler(Scheduler, lengthwise=ours, worker=WORKER, **limits)
        serve(SteppedEngine(plain), {}, listener)
        watches: dict[str, Any] = {name: f"{folder}/{name}" for name in WATCHES}
        watches["length_log"] = {"folder": watches["length_log"]}
        for engine in (SteppedEngine(plain), ProbedEngine(probed, lag=1)):
            for policy in ("srpt", "trail", "priority"):
                serve(engine, {"policy": policy}, listener)
                serve(engine, {"policy": policy, **GUARDS}, listener)
            serve(engine, {"policy": "trail", "parameters": {"c": "auto"}, **watches}, listener)
            serve(engine, {"policy": "srpt", "shadow": True}, listener)
        for what in ("preemptions", "memory_preemptions", "pauses", "probe_predictions"):
            assert sum(getattr(each.counters, what) for each in (plain, probed)) > 0, what
    print(*sorted(set(listener.seen)), sep="\n", end="")


if __name__ == "__main__":
    main()
