"""The router in a real Ray Serve on a cluster of two nodes, before replicas that only sleep."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

pytest.importorskip("ray.serve", reason="Ray Serve is not installed")

import ray
from ray import serve
from ray.cluster_utils import Cluster

from lengthwise.ray.router import PredictedWorkRouter
from lengthwise.reference import model_path
from tests.support.ray_nodes import started_twice

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(300)]

SLOTS = 2
TOKEN_S = 0.01
NAME = "sleepers"


@serve.deployment(
    num_replicas=2,
    max_ongoing_requests=100,
    ray_actor_options={"num_cpus": 1},
    health_check_period_s=1,
    request_router_config={
        "request_router_class": "lengthwise.ray.PredictedWorkRouter",
        "request_router_kwargs": {
            "tokenizer": str(model_path()),
            "slots": SLOTS,
            "order": "arrival",
            "prompt_token_s": 0.0,
        },
    },
)
class Sleeper:
    """An engine with two slots, where a token takes 10 ms."""

    def __init__(self) -> None:
        self._slots = asyncio.Semaphore(SLOTS)
        self._name = serve.get_replica_context().replica_id.unique_id
        self._ledger = ray.get_actor("ledger", namespace="test")

    async def __call__(self, body: dict[str, Any]) -> str:
        async with self._slots:
            await self._ledger.note.remote(body["id"])
            await asyncio.sleep(TOKEN_S * body["tokens"])
        return self._name


@ray.remote(num_cpus=0)
class Ledger:
    """Which requests were begun, and how often."""

    def __init__(self) -> None:
        self.begun: Counter[str] = Counter()

    def note(self, request: str) -> None:
        self.begun[request] += 1

    def most(self) -> int:
        return max(self.begun.values(), default=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two nodes: the second has room for what the first has not."""
    head = {"num_cpus": 2, "include_dashboard": False}
    cluster = started_twice(partial(Cluster, initialize_head=True, head_node_args=head))
    started_twice(partial(cluster.add_node, num_cpus=2))
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    ledger = Ledger.options(name="ledger", namespace="test", max_concurrency=8).remote()
    serve.start(proxy_location="Disabled")
    try:
        yield cluster
    finally:
        serve.shutdown()
        del ledger
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture(scope="module")
def handle(cluster: Cluster) -> Any:
    handle = serve.run(Sleeper.bind(), name=NAME, route_prefix=None)
    # The predictor is loaded with the first request, and compiled.
    handle.remote(request("warm", 1)).result()
    time.sleep(2.0)
    return handle


def request(name: str, tokens: int, declared: float | None = -1.0) -> dict[str, Any]:
    said = tokens if declared == -1.0 else declared
    hints = {} if said is None else {"lengthwise_expected_tokens": said}
    return {"id": name, "tokens": tokens, "prompt": f"Request {name}", "vllm_xargs": hints}


def router_of(handle: Any) -> PredictedWorkRouter:
    found: PredictedWorkRouter = handle._router._asyncio_router.request_router
    return found


def outcome(response: Any, timeout_s: float = 60.0) -> str | None:
    """Which replica answered; None for an error."""
    try:
        name: str = response.result(timeout_s=timeout_s)
    except TimeoutError:
        raise AssertionError("a request neither ended nor failed") from None
    except Exception:
        return None
    return name


def books_are_closed(handle: Any) -> bool:
    deadline = time.monotonic() + 10.0
    while len(router_of(handle)._bookings) and time.monotonic() < deadline:
        time.sleep(0.1)
    return len(router_of(handle)._bookings) == 0


def test_it_is_ours_that_routes(handle: Any) -> None:
    assert isinstance(router_of(handle), PredictedWorkRouter)
    assert router_of(handle)._work._estimator is not None


def test_what_is_booked_is_what_was_predicted_until_it_has_ended(handle: Any) -> None:
    """Cut by `max_tokens`, and where requests went: both replicas have their share."""
    responses = [handle.remote(request(f"booked-{k}", 60)) for k in range(6)]
    responses.append(handle.remote({**request("cut", 60, 5_000.0), "max_tokens": 60}))
    time.sleep(1.0)
    books = router_of(handle)._bookings
    work = [books.work(name) for name in books.replicas]
    ended = 7 - len(books)
    assert sum(work) == 60.0 * (7 - ended)
    assert len({outcome(each) for each in responses}) == 2
    assert books_are_closed(handle)


def test_requests_without_prediction_or_text_are_served(handle: Any) -> None:
    responses = [handle.remote(request(f"none-{k}", 2, None)) for k in range(8)]
    responses.append(handle.remote({"id": "no text", "tokens": 1}))
    assert None not in [outcome(each) for each in responses]
    assert books_are_closed(handle)


def test_a_cancelled_request_leaves_no_booking(handle: Any) -> None:
    responses = [handle.remote(request(f"gone-{k}", 100)) for k in range(12)]
    time.sleep(0.2)
    for each in responses[2:]:
        each.cancel()
    assert [outcome(each) for each in responses[:2]] != [None, None]
    for each in responses[2:]:
        outcome(each)
    assert books_are_closed(handle)


def test_faults_lose_nobody_and_a_new_replica_takes_its_share(
    cluster: Cluster, handle: Any
) -> None:
    """A replica is killed, then a node is added and a replica on it, then the node is killed."""
    responses = [handle.remote(request(f"a-{k}", 30)) for k in range(40)]
    time.sleep(0.5)
    names = list(router_of(handle)._bookings.replicas)
    victim = router_of(handle)._replicas[names[0]].replica_id.to_full_id_str()
    ray.kill(ray.get_actor(victim, namespace="serve"), no_restart=True)
    first = [outcome(each) for each in responses]
    assert any(first)
    assert books_are_closed(handle)

    node = started_twice(partial(cluster.add_node, num_cpus=2))
    serve.run(Sleeper.options(num_replicas=3).bind(), name=NAME, route_prefix=None)
    began, served = time.monotonic(), Counter[str | None]()
    while time.monotonic() < began + 10.0 and len(served) < 3:
        more = [handle.remote(request(f"b-{began}-{time.monotonic()}-{k}", 5)) for k in range(12)]
        served.update(outcome(each) for each in more)
    assert None not in served
    assert len(served) == 3, "the new replica got nothing within 10 s"

    responses = [handle.remote(request(f"c-{k}", 30)) for k in range(60)]
    time.sleep(0.5)
    cluster.remove_node(node, allow_graceful=False)
    third = [outcome(each) for each in responses]
    assert any(third)
    assert books_are_closed(handle)
    ledger = ray.get_actor("ledger", namespace="test")
    assert ray.get(ledger.most.remote()) == 1, "a request was begun twice"
