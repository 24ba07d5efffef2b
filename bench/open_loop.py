"""Load that does not wait for answers: each call goes when it is due, as users come.

A call's latency counts from when it was due, so that a server that falls behind shows it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import numpy as np
from numpy.typing import NDArray


async def open_loop(
    call: Callable[[int, Callable[[], None]], Awaitable[None]],
    rate: float,
    seconds: float,
    seed: int,
) -> NDArray[np.float64]:
    """Milliseconds from when each call was due to when it said that it had its answer.

    Args:
        call: takes its number, and what it has to call once.
        rate: calls a second, a Poisson process.
        seconds: for so long.
        seed: of the arrivals.
    """
    rng = np.random.default_rng(seed)
    due = np.cumsum(rng.exponential(1 / rate, round(rate * seconds)))
    taken = np.full(due.size, np.nan)
    started = time.perf_counter()

    async def one(index: int) -> None:
        def answered() -> None:
            taken[index] = 1e3 * (time.perf_counter() - started - due[index])

        await call(index, answered)

    async with asyncio.TaskGroup() as group:
        for index, at in enumerate(due):
            delay = started + at - time.perf_counter()
            if delay > 0:
                await asyncio.sleep(delay)
            group.create_task(one(index))
    return taken
