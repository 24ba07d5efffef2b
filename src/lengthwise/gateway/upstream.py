"""The servers behind: what each may have in flight, and whether it can be reached.

Where it is not said how much a vLLM server may have, it is what the server's own queue tells: as
much as it runs and nothing that only waits there, since what waits in an engine is out of our
reach. While nothing waits and all that is allowed is in flight, more is allowed, a sixteenth at a
time. Where requests wait, so many fewer are, and at most by half. A server that has said nothing
for `STALE_S` counts as full: nothing is sent to it until it says something again.

A server that takes no connection is tried until it does, and it is said why it did not.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import os
import re
import socket
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal
from urllib.parse import urlsplit

import aiohttp

from lengthwise.errors import InputError, LengthwiseError

logger = logging.getLogger("lengthwise.gateway")

EVERY_S: Final = 0.5  #: a server is asked so often what waits there
STALE_S: Final = 3.0
FIRST_LIMIT: Final = 16

_API: Final = "/v1"  # clients' paths begin with it, so an upstream's address ends before
_MOST: Final = 65_536  # answers in flight
_GAUGE: Final = re.compile(rb"^vllm:num_requests_waiting(?:\{[^}\n]*\})? (\S+)$", re.MULTILINE)
_MOST_BYTES: Final = 8 << 20  # of a page of metrics
_TRY_EVERY_S: Final = 0.5  # a server that could not be reached is tried so often


@dataclass(eq=False)
class Upstream:
    """One server.

    Attributes:
        url: what a client's path is put behind.
        limit: answers that may be in flight.
        in_flight: answers that are.
        reachable: whether it took the last connection.
        refusal: why it did not, "" where it did.
        known: whether it is known how much it has to do. Where that is asked for and has not been
            answered for a while, it counts as full.
        passing: requests that are passed on without a queue, and under way.
        turn: of the request that was sent there last; the lower, the longer ago.
    """

    url: str
    limit: int
    in_flight: int = 0
    reachable: bool = True
    refusal: str = ""
    known: bool = True
    passing: int = 0
    turn: int = 0

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
        self._turns = itertools.count(1)

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

        Of several with as much, whose last turn is longest ago. None where it has to wait.
        """
        able = [each for each in self.upstreams if each.free >= max(each.slots_of(answers), 1)]
        if not able:
            return None
        chosen = max(able, key=lambda each: (each.free / each.limit, -each.turn))
        chosen.turn = next(self._turns)
        return chosen

    @property
    def refusals(self) -> str:
        """Why nobody could, without anybody's address."""
        return ", ".join(dict.fromkeys(each.refusal for each in self.upstreams if each.refusal))

    def any_reachable(self) -> Upstream:
        """Where a request goes that is not queued: whoever can be reached and has fewest of them
        under way, for what it may have; of several, whose last turn is longest ago.
        """
        able = [each for each in self.upstreams if each.reachable] or self.upstreams
        chosen = min(able, key=lambda each: (each.passing / each.limit, each.turn))
        chosen.turn = next(self._turns)
        return chosen


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
            (parts.hostname or "").encode("idna")  # as every look-up begins
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
    if not found or not math.isfinite(sum(found)):
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
            await asyncio.sleep(_TRY_EVERY_S)
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
