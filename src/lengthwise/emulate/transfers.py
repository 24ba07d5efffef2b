"""KV that comes from another engine and goes to one, over a link of a stated bandwidth.

The worker's side of vLLM's NixlConnector (prefill and decode on different engines), without memory
to read: a transfer takes its bytes over the bandwidth, one after the other in each direction. The
engine that reads is told when all of it is there. The one that is read from frees its blocks when a
reading that began at once would be over: the reader cannot tell it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

CONNECTOR: Final = "NixlConnector"
DEFAULT_GBIT_PER_S: Final = 200.0  #: a port of HDR InfiniBand


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
