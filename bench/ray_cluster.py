"""Ray Serve on a local cluster of two nodes: what the router is worth, and what happens in faults.

    python bench/ray_cluster.py             a table
    python bench/ray_cluster.py --json      a list of rows
    python bench/ray_cluster.py --faults    a replica, then a node is killed

Three replicas emulate a 70B model on two A100 with two slots each; the load is 0.9 of what they
can do, answers are log-normal (mean 60 tokens, sigma 2.0, 2,000 tokens at most) and callers declare
how long they will be, with an error: the logarithm's standard deviation is 0.5. The same requests
are sent at the same times to Serve's power of two and to ours, in front of replicas that serve in
the order of arrival and by predicted length.

Takes a quarter of an hour a seed, in real time, on an otherwise idle machine of two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parents[1]))

import aiohttp
import numpy as np
import ray
from ray import serve
from ray.cluster_utils import Cluster

from lengthwise.advise.sweep import capacity
from lengthwise.ray import build_app
from lengthwise.ray.application import replica_arguments
from lengthwise.serve.command import server_command
from lengthwise.serve.listen import free_port
from lengthwise.settings import Settings, parse_spec
from lengthwise.simulate.presets import parse_preset
from lengthwise.workload.arrivals import poisson, synthetic_trace

PRESET: Final = "2xa100:llama-3-70b"
REPLICAS: Final = 3
POLICIES: Final = ("fcfs", "srpt")
SLOTS: Final = 2
LOAD: Final = 0.9
REQUESTS: Final = 400
MOST_TOKENS: Final = 2_000
ERROR: Final = 0.5  # of declared lengths: standard deviation of the logarithm
TIMEOUT_S: Final = 600.0


@dataclass
class Outcome:
    """What became of a request."""

    sent_s: float
    ended_s: float = float("nan")
    status: int = 0  # 200, an error's, or -1 for a connection that broke off


@dataclass(frozen=True)
class Load:
    """Requests and when they come."""

    arrival_s: np.ndarray
    tokens: np.ndarray
    declared: np.ndarray


def load(requests: int, seed: int, error: float) -> Load:
    """Skewed lengths at 0.9 of what the replicas can do."""
    preset = parse_preset(PRESET)
    engine = replace(preset.engine, slots=SLOTS)
    trace = synthetic_trace(requests, 1.0, mean_prompt=20, mean_output=60, sigma=2.0, seed=seed + 1)
    tokens = np.minimum(trace.output_tokens, MOST_TOKENS)
    trace = replace(trace, output_tokens=tokens)
    rate = LOAD * REPLICAS * capacity(trace, preset.cost, engine)
    noise = np.random.default_rng([seed, 2]).normal(0.0, error, requests)
    return Load(poisson(requests, rate, seed), tokens, np.maximum(tokens * np.exp(noise), 1.0))


async def send(
    url: str, model: str, work: Load, at: dict[float, Any] | None = None
) -> list[Outcome]:
    """Send all at their times; `at`: deeds by the second."""
    outcomes = [Outcome(0.0) for _ in work.tokens]
    timeout = aiohttp.ClientTimeout(total=TIMEOUT_S)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        began = time.perf_counter()

        async def one(place: int) -> None:
            await asyncio.sleep(max(began + work.arrival_s[place] - time.perf_counter(), 0.0))
            outcome = outcomes[place]
            outcome.sent_s = time.perf_counter() - began
            body = {
                "model": model,
                "prompt": f"Question {place}: what should be done with it?",
                "max_tokens": int(work.tokens[place]),
                "ignore_eos": True,
                "vllm_xargs": {"lengthwise_expected_tokens": float(work.declared[place])},
            }
            try:
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    await response.read()
                    outcome.status = response.status
            except (aiohttp.ClientError, TimeoutError):
                outcome.status = -1
            outcome.ended_s = time.perf_counter() - began

        async def deed(second: float, what: Any) -> None:
            await asyncio.sleep(second)
            await asyncio.to_thread(what)

        deeds = [deed(second, what) for second, what in (at or {}).items()]
        await asyncio.gather(*map(one, range(len(outcomes))), *deeds)
    return outcomes


class Local:
    """Two nodes on this machine, and the application on them."""

    def __init__(self) -> None:
        # The head has Ray's own actors, the ingress and one replica; the other the rest.
        self.cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False}
        )
        self.second = self.cluster.add_node(num_cpus=3)
        ray.init(address=self.cluster.address, log_to_driver=False, logging_level="ERROR")
        self.port = free_port()
        serve.start(http_options={"host": "127.0.0.1", "port": self.port})
        self.folder = tempfile.TemporaryDirectory(prefix="lengthwise-cluster-")
        self.settings = Path(self.folder.name) / "settings.json"
        self.model = ""

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"http://127.0.0.1:{self.port}"

    def follow(self, policy: str) -> Settings:
        """Have all replicas serve by a policy, now or once they are there."""
        chosen = parse_spec(policy, Settings(predictor="declared"))
        chosen.write(self.settings)
        time.sleep(3.0)  # until the watchers have looked
        return chosen

    def deploy(self, policy: str, router: str, replicas: int = REPLICAS) -> None:
        """Start replicas behind a router, in the place of those that are there."""
        serve.delete("lengthwise")
        chosen = self.follow(policy)
        command = server_command(
            "reference",
            self.settings,
            host="127.0.0.1",
            port=free_port(),
            flags=["--max-num-seqs", str(SLOTS)],
            emulate=parse_preset(PRESET),
        )
        arguments = replica_arguments(command, chosen, replicas, "reference")
        if router == "power-of-two":
            arguments.router = None
        self.model = arguments.model_id
        serve.run(build_app(arguments), name="lengthwise")

    def close(self) -> None:
        """End everything."""
        serve.shutdown()
        ray.shutdown()
        self.cluster.shutdown()
        self.folder.cleanup()


@contextlib.contextmanager
def local() -> Iterator[Local]:
    """A cluster that is ended whatever happens."""
    cluster = Local()
    try:
        yield cluster
    finally:
        cluster.close()


def gain(requests: int, seed: int) -> list[dict[str, Any]]:
    """Mean latencies of both routers in front of both kinds of replicas."""
    work = load(requests, seed, ERROR)
    rows: list[dict[str, Any]] = []

    def measure(cluster: Local, policy: str, router: str) -> None:
        outcomes = asyncio.run(send(cluster.url, cluster.model, work))
        assert all(each.status == 200 for each in outcomes), "a request failed"
        took = np.array([each.ended_s - each.sent_s for each in outcomes])
        rows.append(
            {
                "policy": policy,
                "router": router,
                "declared_error": ERROR,
                "replicas": REPLICAS,
                "slots": SLOTS,
                "seed": seed,
                "requests": requests,
                "mean_e2el_s": float(took.mean()),
                "p99_e2el_s": float(np.quantile(took, 0.99)),
            }
        )
        print(line(rows[-1]), file=sys.stderr, flush=True)

    with local() as cluster:
        cluster.deploy("fcfs", "power-of-two")
        for policy in POLICIES:  # which does not know how the replicas serve
            cluster.follow(policy)
            measure(cluster, policy, "power-of-two")
        for policy in POLICIES:
            cluster.deploy(policy, "predicted-wait")
            measure(cluster, policy, "predicted-wait")
    for row in rows:
        (base,) = (
            each["mean_e2el_s"]
            for each in rows
            if each["policy"] == row["policy"] and each["router"] == "power-of-two"
        )
        row["over_power_of_two"] = row["mean_e2el_s"] / base
    return rows


def faults(requests: int, seed: int) -> list[dict[str, Any]]:
    """A replica is killed, then a node, while requests come."""
    work = load(requests, seed, ERROR)
    end = float(work.arrival_s[-1])
    with local() as cluster:
        cluster.deploy("srpt", "predicted-wait")

        def kill_replica() -> None:
            # The first that Serve names; its actor is killed as an operating system would.
            names = [each["name"] for each in ray.util.list_named_actors(all_namespaces=True)]
            victim = next(name for name in names if "LLMServer" in name)
            ray.kill(ray.get_actor(victim, namespace="serve"), no_restart=True)

        def kill_node() -> None:
            cluster.cluster.remove_node(cluster.second, allow_graceful=False)

        deeds = {0.25 * end: kill_replica, 0.5 * end: kill_node}
        outcomes = asyncio.run(send(cluster.url, cluster.model, work, deeds))
    done = sum(each.status == 200 for each in outcomes)
    return [
        {
            "requests": requests,
            "completed": done,
            "reported_failed": sum(each.status not in (0, 200) for each in outcomes),
            "lost": sum(each.status == 0 for each in outcomes),
        }
    ]


def line(row: dict[str, Any]) -> str:
    """A row in words."""
    if "router" not in row:
        return ", ".join(f"{name} {value}" for name, value in row.items())
    share = row.get("over_power_of_two")
    return (
        f"{row['policy']} replicas, {row['router']}: {row['mean_e2el_s']:.2f} s "
        f"(99 % below {row['p99_e2el_s']:.1f} s)"
        + ("" if share is None else f", {share:.2f} of power of two")
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--faults", action="store_true")
    parser.add_argument("--requests", type=int, default=REQUESTS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = (faults if given.faults else gain)(given.requests, given.seed)
    print(json.dumps(rows) if given.json else "\n".join(map(line, rows)))


if __name__ == "__main__":
    main()
