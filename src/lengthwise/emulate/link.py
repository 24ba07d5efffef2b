"""KV that leaves an emulated engine and comes back, over a link of a stated bandwidth.

The worker's side of two of vLLM's connectors, without memory to copy or to read: a job takes its
bytes over the bandwidth, one after the other in each direction, beside the steps.

OffloadingConnector (to host memory): as the worker does it, a store begins with the step after the
one that planned it, a load with its own; the scheduler hears of either with the step in which it
ends. Where blocks are used again whose copies are not there yet, the step waits for them.

NixlConnector (prefill and decode on different engines): the engine that reads is told when all of
it is there. The one that is read from frees its blocks when a reading that began at once would be
over: the reader cannot tell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from lengthwise.errors import InputError
from lengthwise.vllm.compat import offloading_connector

OFFLOAD_GBIT_PER_S: Final = 200.0  #: 25 GB/s, PCI Express 4.0 with 16 lanes


class _Job(NamedTuple):
    end_s: float
    began_s: float
    blocks: int
    loads: str | None  # the request whose KV is loaded; None for a store


class Offload:
    """What is under way between an engine's memory and its host's."""

    def __init__(self, bytes_per_s: float, block_bytes: int) -> None:
        """A link that is idle.

        Args:
            bytes_per_s: each way.
            block_bytes: bytes of a KV block, all layers.
        """
        self._block_s = block_bytes / bytes_per_s
        self._block_bytes = block_bytes
        self._planned: dict[int, int] = {}  # stores of the step before: blocks by job
        self._jobs: dict[int, _Job] = {}
        self._busy_until_s = {"in": 0.0, "out": 0.0}

    def take(self, metadata: Any, start_s: float) -> float:
        """Begin what a step's plan asks for.

        Args:
            metadata: the plan's OffloadingConnectorMetadata.
            start_s: when the step could start.

        Returns:
            When it does: not before copies are there whose blocks it writes to.
        """
        stores = {job: len(each.src_spec.block_ids) for job, each in metadata.store_jobs.items()}
        flushed = metadata.jobs_to_flush or set()
        for job in flushed & stores.keys():
            self._planned[job] = stores.pop(job)
        for job, blocks in self._planned.items():
            self._begin("out", job, start_s, blocks, None)
        self._planned = stores
        ends = [self._jobs[job].end_s for job in flushed & self._jobs.keys()]
        start_s = max([start_s, *ends])
        for job, each in metadata.load_jobs.items():
            self._begin("in", job, start_s, len(each.dst_spec.block_ids), each.req_id)
        return start_s

    def restart(self) -> None:
        """Let it be 0 s; jobs that were under way are over, and still to be told."""
        self._jobs = {job: each._replace(end_s=0.0) for job, each in self._jobs.items()}
        self._busy_until_s = dict.fromkeys(self._busy_until_s, 0.0)

    def done(self, by_s: float) -> Any:
        """vLLM's KVConnectorOutput for what is over by then and was not told before; or None."""
        from vllm.distributed.kv_transfer.kv_connector.v1.offloading.common import (
            OffloadingWorkerMetadata,
        )
        from vllm.v1.outputs import KVConnectorOutput

        over = {job: each for job, each in self._jobs.items() if each.end_s <= by_s}
        if not over:
            return None
        told = OffloadingWorkerMetadata()
        for job, each in over.items():
            del self._jobs[job]
            told.mark_completed(job)
            stats = told.transfer_stats.store if each.loads is None else told.transfer_stats.load
            stats.record(each.blocks * self._block_bytes, each.end_s - each.began_s)
        return KVConnectorOutput(
            finished_recving={each.loads for each in over.values() if each.loads is not None},
            kv_connector_worker_meta=told,
        )

    @property
    def next_end_s(self) -> float | None:
        """When the next job ends; None where nothing is under way."""
        return min((each.end_s for each in self._jobs.values()), default=None)

    def _begin(self, way: str, job: int, now_s: float, blocks: int, loads: str | None) -> None:
        began_s = max(now_s, self._busy_until_s[way])
        end_s = began_s + blocks * self._block_s
        self._busy_until_s[way] = end_s
        self._jobs[job] = _Job(end_s, began_s, blocks, loads)


CONNECTOR: Final = "NixlConnector"
TRANSFER_GBIT_PER_S: Final = 200.0  #: a port of HDR InfiniBand


class Transfers:
    """What is under way on an engine's link, both ways."""

    def __init__(self, bytes_per_s: float, block_bytes: int) -> None:
        """A link that is idle.

        Args:
            bytes_per_s: each way.
            block_bytes: bytes of a KV block, all layers.
        """
        self._block_s = block_bytes / bytes_per_s
        self._receiving: dict[str, float] = {}  # request: when it will be over
        self._sending: dict[str, float] = {}
        self._busy_until_s = {"in": 0.0, "out": 0.0}

    def take(self, metadata: Any, now_s: float, blocks: Mapping[str, int]) -> None:
        """Begin what a step's plan asks for.

        Args:
            metadata: the plan's NixlConnectorMetadata.
            now_s: the time.
            blocks: KV blocks of the prompts of requests that have run here.
        """
        for name, wanted in metadata.reqs_to_recv.items():
            if wanted.awaiting_kvs:
                count = sum(len(group) for group in wanted.local_block_ids)
                self._receiving[name] = self._end("in", now_s, count)
        for name in metadata.reqs_to_send:
            self._sending[name] = self._end("out", now_s, blocks.get(name, 0))

    def done(self, by_s: float) -> Any:
        """vLLM's KVConnectorOutput for what is over by then and was not told before; or None."""
        from vllm.v1.outputs import KVConnectorOutput

        received, sent = _over(self._receiving, by_s), _over(self._sending, by_s)
        if not (received or sent):
            return None
        return KVConnectorOutput(finished_sending=sent, finished_recving=received)

    def _end(self, way: str, now_s: float, blocks: int) -> float:
        end_s = max(now_s, self._busy_until_s[way]) + blocks * self._block_s
        self._busy_until_s[way] = end_s
        return end_s


def _over(ends: dict[str, float], by_s: float) -> set[str]:
    over = {name for name, end_s in ends.items() if end_s <= by_s}
    for name in over:
        del ends[name]
    return over


BANDWIDTH: Final = "emulated_gbit_per_s"  #: in the connector's `kv_connector_extra_config`


def link_of(vllm_config: Any, block_bytes: int, virtual: bool) -> Transfers | Offload | None:
    """The worker's side of an engine's connector; None for an engine that has none.

    Args:
        vllm_config: vLLM's configuration.
        block_bytes: bytes of a KV block, all layers.
        virtual: the engine's time is virtual.

    Raises:
        InputError: another connector than those that are emulated, or a wrong bandwidth.
    """
    wanted = vllm_config.kv_transfer_config
    if wanted is None or wanted.kv_connector is None:
        return None
    if wanted.kv_connector not in (CONNECTOR, offloading_connector.CONNECTOR):
        raise InputError(
            f"an emulated server moves KV as {CONNECTOR} or {offloading_connector.CONNECTOR} does, "
            f"not as {wanted.kv_connector}"
        )
    offloads = wanted.kv_connector == offloading_connector.CONNECTOR
    if virtual and not offloads:
        raise InputError("KV is sent to other engines in real time only: leave the connector out")
    default = OFFLOAD_GBIT_PER_S if offloads else TRANSFER_GBIT_PER_S
    stated = wanted.get_from_extra_config(BANDWIDTH, default)
    if not (isinstance(stated, int | float) and stated > 0):
        raise InputError(f"{BANDWIDTH} must be a number above 0, got {stated!r}")
    bytes_per_s = stated * 1e9 / 8
    return (Offload if offloads else Transfers)(bytes_per_s, block_bytes)
