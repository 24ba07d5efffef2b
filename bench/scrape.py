"""What a scrape of /metrics takes on an emulated server with two engines, and our part of it.

    python bench/scrape.py              two lines
    python bench/scrape.py --json       a list of rows

One row for one API server and one for four; every scrape is a connection of its own. Beside it
stands what the same server takes for /health, which makes no page: the latency of the machine and
of HTTP. Our part is what the middleware adds, timed in this process on the files that these engines
keep.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np

from lengthwise.serve.command import REFERENCE, server_command
from lengthwise.serve.listen import free_port
from lengthwise.serve.vllm_server import Server
from lengthwise.settings import Settings
from lengthwise.simulate.presets import parse_preset
from lengthwise.telemetry.prometheus import ENGINES

PRESET: Final = "a100:llama-3-8b"
API_SERVERS: Final = (1, 4)
ENGINES_OF_SERVER: Final = 2
WARM_UP: Final = 20


def measure(api_servers: int, scrapes: int) -> dict[str, Any]:
    """One server's row."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engines = folder / "engines"
        engines.mkdir()
        Settings(policy="srpt", predictor="declared").write(folder / "settings.json")
        flags = ["--data-parallel-size", str(ENGINES_OF_SERVER)]
        flags += ["--api-server-count", str(api_servers)]
        command = server_command(
            REFERENCE,
            folder / "settings.json",
            host="127.0.0.1",
            port=free_port(),
            flags=flags,
            emulate=parse_preset(PRESET),
            engines=engines,
        )
        with Server(command, folder / "log") as server:
            server.wait_ready()
            page = timed(lambda: server.call("/metrics"), scrapes)
            health = timed(lambda: server.call("/health"), scrapes)
            ours = timed(our_part(engines), scrapes)
            size = len(server.call("/metrics"))
    return {
        "api_servers": api_servers,
        "engines": ENGINES_OF_SERVER,
        "scrapes": scrapes,
        "bytes": size,
        "load_average": os.getloadavg()[0],
        **{f"scrape_{name}": value for name, value in page.items()},
        **{f"health_{name}": value for name, value in health.items()},
        **{f"ours_{name}": value for name, value in ours.items()},
    }


def timed(call: Callable[[], object], times: int) -> dict[str, float]:
    """Milliseconds of a call: median and 99 % quantile."""
    taken = []
    for number in range(WARM_UP + times):
        started = time.perf_counter()
        call()
        if number >= WARM_UP:
            taken.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.quantile(taken, [0.5, 0.99])
    return {"p50_ms": float(p50), "p99_ms": float(p99)}


def our_part(engines: Path) -> Callable[[], object]:
    """What the middleware appends to a page, as it makes it."""
    from prometheus_client import CollectorRegistry, generate_latest

    from lengthwise.telemetry.prometheus import Metrics

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        pass

    os.environ[ENGINES] = str(engines)
    registry = CollectorRegistry()
    registry.register(Metrics(nothing))
    return lambda: generate_latest(registry)


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scrapes", type=int, default=200)
    given = parser.parse_args()
    rows = [measure(count, given.scrapes) for count in API_SERVERS]
    if given.json:
        print(json.dumps(rows))
        return
    for row in rows:
        print(
            f"{row['api_servers']} API servers, {row['engines']} engines, {row['bytes']:,} bytes: "
            f"scrape {row['scrape_p50_ms']:.1f} ms (99 % below {row['scrape_p99_ms']:.1f}), "
            f"/health {row['health_p50_ms']:.1f} ms, our part {row['ours_p50_ms']:.1f} ms; "
            f"load average {row['load_average']:.1f}"
        )


if __name__ == "__main__":
    main()
