"""The servers behind: what each may have in flight, and whether it can be reached."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from lengthwise.errors import InputError

_API: Final = "/v1"  #: clients' paths begin with it, so an upstream's address ends before


@dataclass(eq=False)
class Upstream:
    """One server.

    Attributes:
        url: what a client's path is put behind.
        limit: answers that may be in flight.
        in_flight: answers that are.
        reachable: whether it took the last connection.
        known: whether it is known how much it has to do. Where that is asked for and has not been
            answered for a while, it counts as full.
        sent: requests that were sent so far.
    """

    url: str
    limit: int
    in_flight: int = 0
    reachable: bool = True
    known: bool = True
    sent: int = field(default=0)

    @property
    def free(self) -> int:
        """Answers that could be asked for now."""
        if not (self.reachable and self.known):
            return 0
        return max(self.limit - self.in_flight, 0)

    def slots_of(self, answers: int) -> int:
        """What a request for so many answers takes: all there is, where it asks for more."""
        return min(answers, self.limit)


class Pool:
    """Upstreams that serve the same model."""

    def __init__(self, upstreams: list[Upstream]) -> None:
        self.upstreams = upstreams

    @property
    def slots(self) -> int:
        """Answers that may be in flight in all."""
        return sum(each.limit for each in self.upstreams)

    @property
    def in_flight(self) -> int:
        """Answers that are."""
        return sum(each.in_flight for each in self.upstreams)

    @property
    def has_room(self) -> bool:
        """Whether an answer could be asked for now."""
        return any(each.free for each in self.upstreams)

    @property
    def reachable(self) -> bool:
        """Whether anybody could serve a request, now or later."""
        return any(each.reachable for each in self.upstreams)

    def choose(self, answers: int) -> Upstream | None:
        """Where a request for so many answers goes: the most room, in parts of what there is.

        None where it has to wait.
        """
        able = [each for each in self.upstreams if each.free >= max(each.slots_of(answers), 1)]
        return max(able, key=lambda each: (each.free / each.limit, -each.sent), default=None)

    def any_reachable(self) -> Upstream:
        """Where a request goes that is not queued: whoever can be reached and was asked least."""
        able = [each for each in self.upstreams if each.reachable] or self.upstreams
        return min(able, key=lambda each: each.sent)


def parse_upstreams(text: str) -> list[str]:
    """Addresses separated by commas, without a trailing slash or `/v1`.

    Raises:
        InputError: one is no http or https address, or none is there, or one is there twice.
    """
    found: list[str] = []
    for given in filter(None, map(str.strip, text.split(","))):
        try:
            parts = urlsplit(given)
            good = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            good = False
        if not good or parts.query or parts.fragment or parts.username is not None:
            raise InputError(
                f"--upstream {_without_key(given)}: give addresses such as http://localhost:8000, "
                "separated by commas; keys are for clients to send"
            )
        found.append(given.rstrip("/").removesuffix(_API).rstrip("/"))
    if not found:
        raise InputError("--upstream names no server: give addresses such as http://localhost:8000")
    if len(set(found)) < len(found):
        raise InputError("--upstream names a server twice: its answers would count by halves")
    return found


def _without_key(address: str) -> str:
    """An address as it may be shown: without a user and a password, or what follows a `?`."""
    shown = address.partition("?")[0]
    return shown.rpartition("@")[2] if "@" in shown else shown


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
