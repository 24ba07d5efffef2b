"""Whether upstreams can be reached, and why not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
from collections.abc import Callable
from typing import Final, Literal
from urllib.parse import urlsplit

import aiohttp

from lengthwise.gateway.upstream import Pool, Upstream

logger = logging.getLogger("lengthwise.gateway")

_EVERY_S: Final = 0.5  # a server that could not be reached is tried so often


class Reachability:
    """Tries the upstreams that could not be reached.

    Args:
        pool: the upstreams.
        patience_s: with one connection.
        trusted: what https upstreams are checked against, as the requests' own connections are;
            True for the system's authorities.
        wake: called when one can be reached again.
    """

    def __init__(
        self,
        pool: Pool,
        patience_s: float,
        trusted: ssl.SSLContext | Literal[True],
        wake: Callable[[], None],
    ) -> None:
        self._pool, self._patience_s, self._wake = pool, patience_s, wake
        self._trusted = trusted
        self._tasks: dict[Upstream, asyncio.Task[None]] = {}

    async def look(self) -> list[Upstream]:
        """Try all upstreams once, and go on with those that cannot be reached.

        Returns:
            These.
        """
        upstreams = self._pool.upstreams
        refusals = await asyncio.gather(*map(self._refusal, upstreams))
        absent = []
        for each, refusal in zip(upstreams, refusals, strict=True):
            if refusal:
                absent.append(each)
                self._begin(each, refusal)
        return absent

    def lost(self, upstream: Upstream, refusal: str) -> None:
        """An upstream did not take a connection, and why."""
        if upstream not in self._tasks:
            logger.warning("no connection to %s: %s", upstream.url, refusal)
            self._begin(upstream, refusal)

    def close(self) -> None:
        """Stop trying."""
        for task in self._tasks.values():
            task.cancel()

    def _begin(self, upstream: Upstream, refusal: str) -> None:
        upstream.reachable, upstream.refusal = False, refusal
        self._tasks[upstream] = asyncio.create_task(self._try(upstream))

    async def _try(self, upstream: Upstream) -> None:
        while True:
            await asyncio.sleep(_EVERY_S)
            upstream.refusal = await self._refusal(upstream)
            if not upstream.refusal:
                break
        logger.warning("%s can be reached", upstream.url)
        upstream.reachable = True
        del self._tasks[upstream]
        self._wake()

    async def _refusal(self, upstream: Upstream) -> str:
        """Why an upstream takes no connection such as requests need; "" where it does."""
        parts = urlsplit(upstream.url)
        tls = parts.scheme == "https"
        try:
            async with asyncio.timeout(self._patience_s):
                _, writer = await asyncio.open_connection(
                    parts.hostname,
                    parts.port or (443 if tls else 80),
                    ssl=self._trusted if tls else None,
                )
        except (OSError, TimeoutError) as error:
            return reason_of(error)
        writer.close()
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(self._patience_s):
                await writer.wait_closed()
        return ""


def reason_of(error: BaseException) -> str:
    """What an error of the network says, without what was sent."""
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if isinstance(error, ssl.SSLError | socket.gaierror):
        return error.strerror or type(error).__name__
    if isinstance(error, OSError) and error.errno:  # whose own words may name an address
        return os.strerror(error.errno)
    return (
        "none of its addresses can be reached" if type(error) is OSError else type(error).__name__
    )
