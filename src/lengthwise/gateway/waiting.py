"""How much a server may have in flight, by what a vLLM server says of its own queue.

As much as it runs and nothing that only waits there: what waits in an engine is out of our reach.
While nothing waits and all that is allowed is in flight, more is allowed, a sixteenth at a time.
Where requests wait, so many fewer are, and at most by half. A server that has said nothing for
`STALE_S` counts as full: nothing is sent to it until it says something again.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from typing import Final

import aiohttp

from lengthwise.errors import LengthwiseError
from lengthwise.gateway.upstream import Upstream

logger = logging.getLogger("lengthwise.gateway")

EVERY_S: Final = 0.5
STALE_S: Final = 3.0
FIRST_LIMIT: Final = 16
_MOST: Final = 65_536
_GAUGE: Final = re.compile(rb"^vllm:num_requests_waiting(?:\{[^}\n]*\})? (\S+)$", re.MULTILINE)
_MOST_BYTES: Final = 8 << 20


def adapted(limit: int, in_flight: int, waiting: float) -> int:
    """The next limit, by what waits in the engine now."""
    if waiting > 0:
        return max(in_flight - round(waiting), limit // 2, 1)
    if in_flight >= limit:
        return min(limit + max(limit // 16, 1), _MOST)
    return limit


def waiting_of(page: bytes) -> float:
    """Requests that wait in a server's engines, by its page of metrics.

    Raises:
        LengthwiseError: the page does not say.
    """
    try:
        found = [float(each) for each in _GAUGE.findall(page)]
    except ValueError:
        found = []
    if not found:
        raise LengthwiseError("its /metrics has no vllm:num_requests_waiting")
    return sum(found)


class Watch:
    """Keeps the limits of upstreams up to date.

    Args:
        upstreams: whose limits.
        session: to ask them with.
        wake: called when there may be more room than before.
    """

    def __init__(
        self,
        upstreams: list[Upstream],
        session: aiohttp.ClientSession,
        wake: Callable[[], None],
    ) -> None:
        self._session, self._wake = session, wake
        for each in upstreams:
            each.known = False
        self._tasks = [asyncio.create_task(self._watch(each)) for each in upstreams]

    def close(self) -> None:
        """Stop asking."""
        for task in self._tasks:
            task.cancel()

    async def _watch(self, upstream: Upstream) -> None:
        heard_s = -STALE_S
        complained = False
        while True:
            try:
                async with asyncio.timeout(STALE_S):
                    waiting = await self._ask(upstream)
            except (aiohttp.ClientError, OSError, TimeoutError, LengthwiseError) as error:
                if time.monotonic() - heard_s >= STALE_S:
                    upstream.known = False
                    if not complained:
                        complained = True
                        ours = isinstance(error, LengthwiseError)
                        reason = str(error) if ours else "its /metrics does not answer"
                        logger.warning(
                            "%s counts as full until it says what waits there: %s",
                            upstream.url,
                            reason,
                        )
            else:
                heard_s, complained = time.monotonic(), False
                upstream.known = True
                upstream.limit = adapted(upstream.limit, upstream.in_flight, waiting)
                self._wake()
            await asyncio.sleep(EVERY_S)

    async def _ask(self, upstream: Upstream) -> float:
        async with self._session.get(upstream.url + "/metrics") as answer:
            answer.raise_for_status()
            page = await answer.content.read(_MOST_BYTES)
            while len(page) < _MOST_BYTES and (more := await answer.content.read(_MOST_BYTES)):
                page += more
        return waiting_of(page)
