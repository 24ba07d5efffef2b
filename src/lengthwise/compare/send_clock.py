"""The clocks by which requests are sent: the wall's, or one that runs at the engine's own speed.

A shared machine is now faster, now slower. Where arrivals keep to the wall, a load of 1.2 is then
1.1 in one round and 1.4 in the next, and above capacity the queue depends on nothing more. So where
a load is asked for as a multiple of capacity, the arrivals' clock slows down and speeds up with the
engine: it advances by what the steps of the last seconds would have taken when the capacity was
measured. Latencies are those of the wall all the same.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import numpy as np

from lengthwise.simulate.step_cost import WORK, StepCost

_WINDOW_S: Final = 2.0  # steps whose speed counts: a quarter of a second of them arrives at a time
_TICK_S: Final = 0.1  # the speed is looked up so often


class Pace(NamedTuple):
    """What the engine's clock goes by."""

    steps: Path  #: the file in which the engine records its steps
    cost: StepCost  #: of its tokens, what steps took when this clock ran like the wall's


class Clock(Protocol):
    """Shows seconds since the start of a round."""

    async def until(self, time_s: float) -> float:
        """Wait until it shows `time_s`; return when that was, in s of the wall since the start."""


class WallClock:
    """The wall's; it starts when it is made."""

    def __init__(self) -> None:
        """Start it, in a running event loop."""
        self._loop = asyncio.get_running_loop()
        self.started_s = self._loop.time()

    async def until(self, time_s: float) -> float:
        """Wait until it shows `time_s`."""
        await asyncio.sleep(self.started_s + time_s - self._loop.time())
        return time_s


class EngineClock:
    """Runs at the engine's speed; it starts when it is made, as fast as the wall's."""

    def __init__(self, pace: Pace) -> None:
        """Start it, in a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._pace = pace
        self._recent: deque[tuple[float, float]] = deque()  # of each step: s expected, s taken
        self._expected_s = self._taken_s = 0.0  # sums over these
        self._offset = 0  # bytes read
        self.started_s = self._read_s = self._loop.time()
        self._shown_s = 0.0
        self.speed = 1.0

    async def until(self, time_s: float) -> float:
        """Wait until it shows `time_s`."""
        while True:
            now = self._loop.time()
            self._shown_s += (now - self._read_s) * self.speed
            self._read_s = now
            left_s = (time_s - self._shown_s) / self.speed
            if left_s <= 0:
                return now - self.started_s + left_s
            await asyncio.sleep(min(left_s, _TICK_S))
            self._look_up_speed()

    def _look_up_speed(self) -> None:
        """Take the steps up that the engine recorded since; without any it stays as it was."""
        try:
            with self._pace.steps.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except OSError:
            return  # nothing has run yet
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        # The header has no duration, and where the engine had idled it is unknown.
        steps = [step for step in map(json.loads, whole.splitlines()) if step.get("duration_s")]
        work = np.zeros((len(steps), len(WORK)))
        for place, name in enumerate(("prefill_tokens", "decode_tokens")):
            work[:, place] = [step[name] for step in steps]
        for step, expected_s in zip(steps, self._pace.cost.seconds(work).tolist(), strict=True):
            self._recent.append((expected_s, step["duration_s"]))
            self._expected_s += expected_s
            self._taken_s += step["duration_s"]
        while len(self._recent) > 1 and self._taken_s - self._recent[0][1] >= _WINDOW_S:
            expected_s, taken_s = self._recent.popleft()
            self._expected_s -= expected_s
            self._taken_s -= taken_s
        if self._expected_s > 0:
            self.speed = self._expected_s / self._taken_s
