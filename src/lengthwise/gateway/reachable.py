"""Whether upstreams take connections: noticed when one does not, and tried until it does again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from lengthwise.gateway.upstream import Pool, Upstream

logger = logging.getLogger("lengthwise.gateway")

_EVERY_S: Final = 0.5  # a server that could not be reached is tried so often


class Reachability:
    """Tries the upstreams that could not be reached.

    Args:
        pool: the upstreams.
        patience_s: with one connection.
        wake: called when one can be reached again.
    """

    def __init__(self, pool: Pool, patience_s: float, wake: Callable[[], None]) -> None:
        self._pool, self._patience_s, self._wake = pool, patience_s, wake
        self._tasks: dict[Upstream, asyncio.Task[None]] = {}

    async def look(self) -> list[Upstream]:
        """Try all upstreams once, and go on with those that cannot be reached.

        Returns:
            These.
        """
        upstreams = self._pool.upstreams
        there = await asyncio.gather(*(self._takes_connections(each) for each in upstreams))
        absent = [each for each, taken in zip(upstreams, there, strict=True) if not taken]
        for each in absent:
            self._begin(each)
        return absent

    def lost(self, upstream: Upstream, error: Exception) -> None:
        """An upstream did not take a connection."""
        if upstream not in self._tasks:
            logger.warning("no connection to %s", error)
            self._begin(upstream)

    def close(self) -> None:
        """Stop trying."""
        for task in self._tasks.values():
            task.cancel()

    def _begin(self, upstream: Upstream) -> None:
        upstream.reachable = False
        self._tasks[upstream] = asyncio.create_task(self._try(upstream))

    async def _try(self, upstream: Upstream) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            if await self._takes_connections(upstream):
                break
        logger.warning("%s can be reached", upstream.url)
        upstream.reachable = True
        del self._tasks[upstream]
        self._wake()

    async def _takes_connections(self, upstream: Upstream) -> bool:
        parts = urlsplit(upstream.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            async with asyncio.timeout(self._patience_s):
                _, writer = await asyncio.open_connection(parts.hostname, port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await writer.wait_closed()
        return True
