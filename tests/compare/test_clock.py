"""The clock that runs at the engine's own speed."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from lengthwise.advise.calibrate import fit_tokens
from lengthwise.compare.client import EngineClock, Pace, WallClock
from lengthwise.compare.engine_log import EngineLog
from lengthwise.simulate.engine import StepCost

COST = StepCost(step_s=0.008, prefill_s=0.0001, decode_s=0.0002)


def write_steps(path: Path, durations_s: Sequence[float | None]) -> None:
    """Steps of 10 prompt tokens and 5 answer tokens: 10 ms each when capacity was measured."""
    work = {"prefill_tokens": 10, "decode_tokens": 5}
    lines = [{"duration_s": duration_s, **work} for duration_s in durations_s]
    with path.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def test_the_fit_finds_the_parts_of_a_step_and_overlooks_pauses() -> None:
    random = np.random.default_rng(0)
    prefill, decode = random.integers(0, 200, 300), random.integers(1, 17, 300)
    seconds = COST.seconds(np.stack([prefill, decode, *np.zeros((3, 300))], axis=1))
    seconds[7], seconds[8] = 3.0, np.nan
    steps = {"duration_s": seconds, "prefill_tokens": prefill, "decode_tokens": decode}
    fitted = fit_tokens(steps)
    assert fitted is not None
    assert fitted.terms == pytest.approx(COST.terms)
    assert fit_tokens({name: column[8:9] for name, column in steps.items()}) is None


def test_the_fit_to_an_asynchronous_engine_is_of_the_step_before() -> None:
    """Its steps are planned while the one before is computed: that is what takes so long."""
    random = np.random.default_rng(0)
    prefill = random.integers(0, 200, 300).astype(np.float64)
    decode = random.integers(1, 17, 300).astype(np.float64)
    seconds = np.roll(COST.seconds(np.stack([prefill, decode, *np.zeros((3, 300))], axis=1)), 1)
    seconds[0], seconds[100], seconds[101] = 2.0, np.nan, 2.5  # begun after a pause
    steps = {"duration_s": seconds, "prefill_tokens": prefill, "decode_tokens": decode}
    fitted = fit_tokens(steps, lag=1)
    assert fitted is not None
    assert fitted.terms == pytest.approx(COST.terms)
    requests = {0: {"prompt_tokens": 500, "output_tokens": 100}}
    columns = {**steps, "running": decode}
    capacity = EngineLog(columns, requests, {"lag": 1}).capacity()
    assert capacity == pytest.approx(600 / (500 * 0.0001 + 100 * (0.0002 + 0.008 / 16)))


@pytest.mark.parametrize("speed", [0.5, 1.0, 2.0])
def test_it_runs_as_fast_as_the_engine(tmp_path: Path, speed: float) -> None:
    steps = tmp_path / "steps.jsonl"
    steps.write_text('{"schema": "lengthwise.steps/1", "engine": {}}\n')
    write_steps(steps, [None, *[0.01 / speed] * 400])

    async def run() -> tuple[float, float, float]:
        clock = EngineClock(Pace(steps, COST))
        await clock.until(0.05)  # the steps are looked up at the first tick
        first_s = await clock.until(0.5)
        return clock.speed, first_s, await clock.until(1.0) - first_s

    found, _, half_s = asyncio.run(run())
    assert found == pytest.approx(speed)
    assert half_s == pytest.approx(0.5 / speed)


def test_the_last_seconds_count_and_a_line_half_written_does_not(tmp_path: Path) -> None:
    steps = tmp_path / "steps.jsonl"
    write_steps(steps, [0.01] * 500)

    async def run() -> list[float]:
        clock = EngineClock(Pace(steps, COST))
        speeds = []
        for more in ([], [0.04] * 100):
            write_steps(steps, more)
            with steps.open("a") as file:
                file.write('{"duration_s": 0.0')
            await clock.until(clock.speed * (time.monotonic() - clock.started_s) + 0.3)
            speeds.append(clock.speed)
            with steps.open("a") as file:
                file.write('1, "prefill_tokens": 10, "decode_tokens": 5}\n')
        return speeds

    assert asyncio.run(run()) == pytest.approx([1.0, 0.25], rel=0.05)


def test_without_steps_it_is_the_walls(tmp_path: Path) -> None:
    async def run() -> tuple[float, float]:
        paced, wall = EngineClock(Pace(tmp_path / "none", COST)), WallClock()
        return await paced.until(0.2), await wall.until(0.2)

    paced_s, wall_s = asyncio.run(run())
    assert paced_s == pytest.approx(0.2)
    assert wall_s == 0.2
