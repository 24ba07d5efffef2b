"""In virtual time nothing of ours asks the machine for the time."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("vllm")

from lengthwise.emulate.driver import open_virtual_engine
from tests.support.virtual_workloads import COST, LONGEST, random_engine, random_workload

#: Every decision that reads a time: arrivals and waits, prices, the cutoff, and the record of both.
SETTINGS = {
    "policy": "trail",
    "parameters": {"c": "auto"},
    "predictor": "foretold",
    "preemption": "pays",
    "service_time": True,
    "max_wait_s": 0.3,
    "starvation_threshold": 20,
    "memory_growth": 1.0,
}


@pytest.mark.parametrize("policy", ["trail", "hrrn"])
@pytest.mark.parametrize("lag", [0, 1])
def test_no_decision_reads_the_machines_clock(
    policy: str, lag: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = replace(random_engine(3), lag=lag)
    settings = {**SETTINGS, "policy": policy, "record": str(tmp_path)}
    if policy != "trail":
        settings["parameters"] = {}
    # Also what was bound to a name before the round begins must not be called in it.
    begun: list[bool] = []
    for name in ("time", "monotonic", "perf_counter"):
        monkeypatch.setattr(time, name, refusing_us(getattr(time, name), begun))
    with open_virtual_engine(COST, engine, longest=LONGEST, settings=settings) as virtual:
        begun.append(True)
        served = virtual.run(random_workload(3000, engine).asked)
        assert virtual.scheduler.counters.predictions == len(served)
    assert all(one.finished == "stop" for one in served)


def refusing_us(read: Callable[[], float], begun: list[bool]) -> Callable[[], float]:
    """A clock that others may read, and our modules only before the round."""

    def clock() -> float:
        caller = str(sys._getframe(1).f_globals.get("__name__"))
        decides = threading.current_thread() is threading.main_thread()  # others only write
        assert not (begun and decides and caller.startswith("lengthwise.")), (
            f"{caller} read the clock"
        )
        return read()

    return clock
