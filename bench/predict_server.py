"""Load on `lengthwise predict-server`: prompts a second in batches, and latency at a given rate.

    python bench/predict_server.py build/p --data table.parquet --json

The server is a process of its own, and so is the one that asks; both share this machine's cores.
Single prompts arrive as a Poisson process that does not wait for answers, and each one's latency
counts from when it was due, so that a server that falls behind shows it. Beside every figure stands
how busy the machine was with other work, and what /health takes at the same rate: nothing is
predicted for it, so that it has the latency of the machine, of HTTP and of the one that asks alone.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp
import numpy as np
import psutil  # type: ignore[import-untyped]
from numpy.typing import NDArray

from bench.open_loop import open_loop

BATCH: Final = 64
CALLERS: Final = 4
_COMMAND: Final = "from lengthwise.cli.main import main; main()"


async def batches(
    session: aiohttp.ClientSession, chats: list[Any], seconds: float
) -> tuple[int, float]:
    """Prompts answered, to callers that each send a batch after the other; and in how long."""
    answered = 0
    ends = time.perf_counter() + seconds

    async def call(first: int) -> None:
        nonlocal answered
        at = first
        while time.perf_counter() < ends:
            requests = [chats[(at + index) % len(chats)] for index in range(BATCH)]
            async with session.post("/v1/predict", json={"requests": requests}) as response:
                response.raise_for_status()
                answered += len((await response.json())["predictions"])
            at += BATCH * CALLERS

    started = time.perf_counter()
    await asyncio.gather(*(call(caller * BATCH) for caller in range(CALLERS)))
    return answered, time.perf_counter() - started


async def singles(
    session: aiohttp.ClientSession, chats: list[Any] | None, rate: float, seconds: float, seed: int
) -> NDArray[np.float64]:
    """Milliseconds of each single prompt, from when it was due; of /health without prompts."""

    async def call(index: int, answered: Callable[[], None]) -> None:
        if chats is None:
            asked = session.get("/health")
        else:
            asked = session.post("/v1/predict", json=chats[index % len(chats)])
        async with asked as response:
            response.raise_for_status()
            await response.read()
        answered()

    return await open_loop(call, rate, seconds, seed)


class Machine:
    """What the server's process and others have computed since this was made."""

    def __init__(self, server: psutil.Process) -> None:
        self._server = server
        self._start = self._read()

    def since(self) -> tuple[float, float]:
        """CPU seconds of the server, and how many cores other processes kept busy."""
        at, busy, client, server = (
            now - before for now, before in zip(self._read(), self._start, strict=True)
        )
        return server, (busy - client - server) / at

    def _read(self) -> tuple[float, float, float, float]:
        times = psutil.cpu_times()
        busy = sum(times) - times.idle - times.iowait
        own = (each.cpu_times() for each in (psutil.Process(), self._server))
        client, server = (each.user + each.system for each in own)
        return time.perf_counter(), busy, client, server


async def measure(url: str, server: psutil.Process, chats: list[Any], given: Any) -> dict[str, Any]:
    """All figures of one run."""
    async with aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=0)) as session:
        await batches(session, chats, 1.0)
        machine = Machine(server)
        answered, seconds = await batches(session, chats, given.seconds)
        server_s, others = machine.since()
        found: dict[str, Any] = {
            "prompts_per_s": answered / seconds,
            "server_us_per_prompt": 1e6 * server_s / answered,
            "others_cores_meanwhile": others,
        }
        machine = Machine(server)
        taken = await singles(session, chats, given.rate, given.seconds, given.seed)
        server_s, others = machine.since()
        nothing = await singles(session, None, given.rate, given.seconds, given.seed)
    p50, p99 = np.quantile(taken, [0.5, 0.99])
    nothing_p50, nothing_p99 = np.quantile(nothing, [0.5, 0.99])
    return found | {
        "rate": given.rate,
        "requests": taken.size,
        "p50_ms": float(p50),
        "p99_ms": float(p99),
        "health_p50_ms": float(nothing_p50),
        "health_p99_ms": float(nothing_p99),
        "server_us_per_request": 1e6 * server_s / taken.size,
        "others_cores_at_rate": others,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("predictor")
    parser.add_argument("--data", type=Path, required=True, help="table with prompts")
    parser.add_argument("--server", default=_COMMAND, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=500.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    from lengthwise.workload.dataset import load_dataset

    prompts = load_dataset(given.data, limit=5_000).prompts
    chats = [{"messages": [{"role": "user", "content": prompt}]} for prompt in prompts]
    command = [sys.executable, "-c", given.server, "predict-server", given.predictor, "--port", "0"]
    with subprocess.Popen([*command, "--json"], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            server = psutil.Process(process.pid)
            found = asyncio.run(measure(url, server, chats, given))
        finally:
            process.terminate()
    found["cores"] = os.cpu_count()
    print(json.dumps(found) if given.json else "\n".join(f"{k}: {v}" for k, v in found.items()))


if __name__ == "__main__":
    main()
