"""`lengthwise gateway`: streams that it holds, what it adds to latency, its memory, and its gain.

    python bench/gateway.py --json

streams  so many streams are open at once, each a token a second, through one gateway
latency  from when a request was due to the first byte of its answer, at 200 requests a second with
         eight events each: straight to a small upstream, and through a gateway before it, in turn.
         `added` is the difference of two quantiles, of rounds that are neighbours
memory   resident memory of the gateway under that load, minute by minute (`--minutes`)
gain     an emulated vLLM with a few slots, under a burst and at 1.2 of its capacity: fcfs, a
         gateway with srpt before fcfs, and srpt inside, with the same predictions (the truth with
         noise, of a given tau). `share` is how much of the gain in mean latency that the scheduler
         inside has is there with the gateway

Upstream, gateway and client are processes that share this machine's cores: `load_average` says how
busy it was besides, and `gateway_us_per_request` is what a request costs of one core, which does
not depend on it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp
import numpy as np
import psutil  # type: ignore[import-untyped]
from aiohttp import web
from numpy.typing import NDArray

from bench.open_loop import open_loop
from lengthwise.compare.client import ReplayJob, ReplayRequest
from lengthwise.compare.session import Starting, start_session
from lengthwise.errors import LengthwiseError
from lengthwise.serve.command import REFERENCE
from lengthwise.settings import Settings
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.arrivals import poisson

PARTS: Final = ("streams", "latency", "memory", "gain")
_COMMAND: Final = "from lengthwise.cli.main import main; main()"
EVENTS: Final = 8


# The small upstream, in a process of its own ---------------------------------------------------


async def answer(request: web.Request) -> web.StreamResponse:
    asked = await request.json()
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for number in range(asked["tokens"]):
        if asked["pause_s"]:
            await asyncio.sleep(asked["pause_s"])
        await response.write(b'data: {"choices":[{"index":0,"text":"%d"}]}\n\n' % number)
    await response.write(b"data: [DONE]\n\n")
    return response


async def serve_upstream() -> None:
    app = web.Application()
    app.router.add_post("/v1/completions", answer)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    print(json.dumps({"url": f"http://127.0.0.1:{port}"}), flush=True)
    await asyncio.Event().wait()


@contextmanager
def process(*arguments: str) -> Iterator[tuple[str, psutil.Process]]:
    """A process that prints its URL, and ends with the block."""
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as started:
        try:
            assert started.stdout is not None
            yield json.loads(started.stdout.readline())["url"], psutil.Process(started.pid)
        finally:
            started.terminate()


def gateway(url: str, slots: int, *more: str) -> Any:
    command = [sys.executable, "-c", _COMMAND, "gateway", "--upstream", url, "--json"]
    command += ["--max-inflight", str(slots), "--port", "0", "--shutdown-timeout", "1"]
    return process(*command, *more)


# Streams, latency, memory ----------------------------------------------------------------------


def asked_for(tokens: int, pause_s: float) -> dict[str, Any]:
    prompt = "Tell me about the sea. " * 20
    return {"prompt": prompt, "stream": True, "tokens": tokens, "pause_s": pause_s}


async def hold_streams(url: str, count: int, seconds: int) -> dict[str, Any]:
    """Open streams at 500 a second, each an event a second, and read all of them to their ends."""
    open_now = most = 0
    whole: list[bool] = []

    async def read(session: aiohttp.ClientSession) -> None:
        nonlocal open_now, most
        async with session.post(url + "/v1/completions", json=asked_for(seconds, 1.0)) as response:
            open_now += 1
            most = max(most, open_now)
            data = await response.read()
            open_now -= 1
        whole.append(data.count(b"data: ") == seconds + 1 and data.endswith(b"[DONE]\n\n"))

    connector, timeout = aiohttp.TCPConnector(limit=0), aiohttp.ClientTimeout(total=None)
    async with (
        aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(count):
            group.create_task(read(session))
            await asyncio.sleep(0.002)
    return {"asked": count, "open_at_once": most, "whole": sum(whole)}


async def first_bytes(url: str, rate: float, seconds: float, seed: int) -> NDArray[np.float64]:
    """Milliseconds to the first byte of each answer, from when it was due."""
    body = json.dumps(asked_for(EVENTS, 0.0)).encode()
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(_: int, answered: Callable[[], None]) -> None:
            async with session.post(url + "/v1/completions", data=body) as response:
                await response.content.readany()
                answered()
                await response.read()
                assert response.status == 200

        return await open_loop(call, rate, seconds, seed)


def _cpu_s(server: psutil.Process) -> float:
    times = server.cpu_times()
    return float(times.user + times.system)


def latency(straight: str, through: str, server: psutil.Process, given: Any) -> dict[str, Any]:
    """Quantiles of rounds in turn, and what the gateway adds: the median of neighbours."""
    asyncio.run(first_bytes(through, given.rate, 2.0, 0))
    asyncio.run(first_bytes(straight, given.rate, 2.0, 0))
    rounds, busy_s = [], -_cpu_s(server)
    for number in range(given.rounds):
        quantiles = []
        for url in (straight, through):
            taken = asyncio.run(first_bytes(url, given.rate, given.seconds, number))
            quantiles.append(np.quantile(taken, [0.5, 0.99]))
        rounds.append(quantiles)
    busy_s += _cpu_s(server)
    found = np.array(rounds)  # [rounds, straight or through, p50 or p99]
    added = found[:, 1] - found[:, 0]
    names = ("p50_ms", "p99_ms")
    return {
        "rate": given.rate,
        "rounds": given.rounds,
        "gateway_us_per_request": 1e6 * busy_s / (given.rounds * round(given.rate * given.seconds)),
        **{f"straight_{name}": float(np.median(found[:, 0, k])) for k, name in enumerate(names)},
        **{f"through_{name}": float(np.median(found[:, 1, k])) for k, name in enumerate(names)},
        **{f"added_{name}": float(np.median(added[:, k])) for k, name in enumerate(names)},
        **{f"added_{name}_worst": float(added[:, k].max()) for k, name in enumerate(names)},
    }


def memory(through: str, server: psutil.Process, given: Any) -> dict[str, Any]:
    """Resident memory after each tenth of the time, MB."""
    seen = []
    for number in range(10):
        asyncio.run(first_bytes(through, given.rate, 6.0 * given.minutes, number))
        seen.append(server.memory_info().rss / 1e6)
    return {
        "minutes": given.minutes,
        "requests": round(60 * given.minutes * given.rate),
        "megabytes": [round(each, 1) for each in seen],
        "growth_megabytes_second_half": round(seen[-1] - seen[4], 2),
    }


# Gain ------------------------------------------------------------------------------------------


def requests_of(count: int, median: float, seed: int) -> list[ReplayRequest]:
    """Short prompts whose answers are log-normal, as many chats' are, with sigma 1."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(median * np.exp(rng.standard_normal(count)), 1, 4096).astype(int)
    tokens = rng.integers(4, 1024, size=(count, 32))
    return [
        ReplayRequest(number, ids.tolist(), None, known_tokens=int(length))
        for number, (ids, length) in enumerate(zip(tokens, lengths, strict=True))
    ]


def mean_latency_s(
    starting: Starting,
    url: str,
    model: str,
    settings: Settings,
    requests: Sequence[ReplayRequest],
    times: Sequence[float],
) -> tuple[float, float]:
    """The mean from when requests were due to when they were answered; and when the last was."""
    server = starting.server
    starting.switch.apply(settings, server.check)
    server.call("/reset_prefix_cache", method="POST")
    job = ReplayJob(url, model, requests, times, tell_truth=True, max_tokens=4096)
    answers = starting.client.replay(job, lambda answered, failed: None, server.check).answers
    failed = [each.error for each in answers if each.error]
    if failed:
        raise LengthwiseError(f"{len(failed)} requests failed, the first with: {failed[0]}")
    taken = [each.finish_s - each.scheduled_s for each in answers]
    return float(np.mean(taken)), max(each.finish_s for each in answers)


def gain(given: Any) -> dict[str, Any]:
    """Both loads, each served three ways."""
    preset, slots = parse_preset(given.preset), given.slots
    requests = requests_of(given.requests, given.median_tokens, given.seed)
    predictor = f"noisy-oracle:{given.tau}"
    found: dict[str, Any] = {"slots": slots, "requests": given.requests, "preset": preset.name}
    found |= {"tau": given.tau, "seed": given.seed}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        flags = ["--max-num-seqs", str(slots)]
        fcfs, inside = Settings(), Settings(policy="srpt", predictor=predictor)
        with start_session(REFERENCE, folder, flags=flags, port=None, emulate=preset) as starting:
            server = starting.server
            server.wait_ready()
            model = json.loads(server.call("/v1/models"))["data"][0]["id"]
            options = ("--policy", "srpt", "--predictor", predictor, "--queue-timeout", "3600")
            with gateway(server.url, slots, *options) as (through, _):

                def run(
                    url: str, settings: Settings, times: Sequence[float]
                ) -> tuple[float, float]:
                    return mean_latency_s(starting, url, model, settings, requests, times)

                burst = [0.0] * len(requests)
                capacity = 0.0
                for load in ("burst", "1.2"):
                    times = burst
                    if load != "burst":
                        times = list(poisson(len(requests), float(load) * capacity, given.seed))
                    base, last_s = run(server.url, fcfs, times)
                    capacity = capacity or len(requests) / last_s
                    before, _ = run(through, fcfs, times)
                    within, _ = run(server.url, inside, times)
                    found[load] = {
                        "fcfs_s": base,
                        "gateway_s": before,
                        "inside_s": within,
                        "gateway_gain": 1 - before / base,
                        "inside_gain": 1 - within / base,
                        "share": (base - before) / (base - within),
                    }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--streams", type=int, default=1_000)
    parser.add_argument("--hold", type=int, default=20, help="seconds that each stream lasts")
    parser.add_argument("--rate", type=float, default=200.0)
    parser.add_argument("--seconds", type=float, default=10.0, help="of one round of latency")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--minutes", type=float, default=2.0, help="of memory")
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--requests", type=int, default=192, help="of gain")
    parser.add_argument("--preset", default="a100:llama-3-8b", help="GPU:MODEL, of gain")
    parser.add_argument("--median-tokens", type=float, default=150.0, help="of answers, of gain")
    parser.add_argument("--tau", type=float, default=0.5, help="of predictions, of gain")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--serve-upstream", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve_upstream:
        asyncio.run(serve_upstream())
        return
    parts = given.parts.split(",")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # two sockets a stream
    found: dict[str, Any] = {"cores": os.cpu_count()}
    if set(parts) - {"gain"}:
        with (
            process(sys.executable, __file__, "--serve-upstream") as (straight, _),
            gateway(straight, 10_000, "--policy", "srpt") as (through, server),
        ):
            if "streams" in parts:
                asyncio.run(first_bytes(through, given.rate, 2.0, 0))
                before = server.memory_info().rss
                found["streams"] = asyncio.run(hold_streams(through, given.streams, given.hold))
                grown = server.memory_info().rss - before
                found["streams"]["kilobytes_a_stream"] = grown / 1e3 / given.streams
            if "latency" in parts:
                found["latency"] = latency(straight, through, server, given)
            if "memory" in parts:
                found["memory"] = memory(through, server, given)
    if "gain" in parts:
        found["gain"] = gain(given)
    found["load_average"] = os.getloadavg()[0]
    print(json.dumps(found, indent=None if given.json else 2))


if __name__ == "__main__":
    main()
