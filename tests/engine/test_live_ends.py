"""What ends a live server: each request is answered or gets one clear error, and none hangs."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")
pytest.importorskip("psutil", reason="psutil, which vLLM brings, is not installed")

from tests.support.commands import assert_gone, children_of
from tests.support.live_server import CUT, REFUSED, WHOLE, Ask, Live, assert_all, live_server

pytestmark = [pytest.mark.engine, pytest.mark.live]


def everything(live: Live) -> Any:
    return live.process


def front_end(live: Live) -> Any:
    return live.child("lengthwise.serve.child")


ENDS = {
    "the engine is killed": (lambda live: live.engine, "died"),
    "the front end is killed": (front_end, "killed by signal 9"),
    "all is killed from above": (everything, None),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (not at)) for at, name in enumerate(ENDS)],
)
def test_the_death_of_a_part_is_one_error_for_each_and_one_line(name: str, tmp_path: Path) -> None:
    part, words = ENDS[name]
    with live_server(tmp_path) as live:
        children = children_of(live.process)
        crowd = live.busy([Ask(2000)] * 200)
        part(live).kill()
        assert_all(crowd.outcomes(), CUT, REFUSED)
        code = live.process.wait(timeout=60)
        assert_gone(children)
    if words is not None:
        assert code == 1
        line = tail(tmp_path)
        assert line.startswith("lengthwise: ")
        assert words in line


def test_the_death_of_a_helper_costs_nothing(tmp_path: Path) -> None:
    """vLLM's tracker of shared memory, and the process that learns from the log."""
    log = {"length_log": {"folder": str(tmp_path / "log")}}
    with live_server(tmp_path, "--learn", "--learn-every", "40", settings=log) as live:
        crowd = live.busy([Ask(200)] * 100)
        for name in ("resource_tracker", "lengthwise.learn"):
            live.child(name).kill()
        assert_all(crowd.outcomes(), WHOLE, tokens=200)
        live.wait_for(lambda: live.children("lengthwise.learn"))  # it is started again
        assert_all(live.send([Ask()] * 20).outcomes(), WHOLE, tokens=20)


@pytest.mark.parametrize("signals", [1, 2])
def test_an_end_that_is_asked_for_leaves_nobody_waiting(signals: int, tmp_path: Path) -> None:
    """Within the time that it has, answers are finished; asked twice, it does not wait."""
    with live_server(tmp_path, "--shutdown-timeout", "60") as live:
        crowd = live.busy([Ask(300)] * 100)
        for _ in range(signals):
            live.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        outcomes = crowd.outcomes()
        code = live.process.wait(timeout=100)
    if signals == 1:
        assert_all(outcomes, WHOLE, tokens=300)
        assert code == 0
    else:
        assert_all(outcomes, WHOLE, CUT, REFUSED)


def tail(folder: Path) -> str:
    return (folder / "err").read_text().strip().splitlines()[-1]
