"""A gateway's whole life: it begins to listen, takes settings up, and ends politely."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from lengthwise.counters import Counters
from lengthwise.gateway.configuration import Configuration, Opener, Options
from lengthwise.gateway.server import Gateway
from lengthwise.gateway.upstream import Upstream
from lengthwise.settings import Settings, off_path
from lengthwise.settings.watch import OffSwitch, SettingsWatcher


@dataclass(frozen=True)
class Ended:
    """How it ended.

    Attributes:
        was_cut: answers that had begun and were cut off.
    """

    was_cut: int


def runner_of(gateway: Gateway) -> web.AppRunner:
    """What serves a gateway: a client that goes away ends its request, and bodies stay as sent."""
    return web.AppRunner(
        gateway.app(),
        access_log=None,
        handler_cancellation=True,
        auto_decompress=False,
        shutdown_timeout=1.0,
    )


class Life:
    """What a gateway needs from before it listens until after it has ended.

    Args:
        options: of the gateway.
        opener: makes settings ready.
        settings: the file, which is watched.
        counters: the scheduler's.

    Raises:
        InputError: the settings, or what they name, cannot be used.
    """

    def __init__(
        self, options: Options, opener: Opener, settings: Path, counters: Counters
    ) -> None:
        self._options, self._opener, self._counters = options, opener, counters
        self._gateway: Gateway | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._offered: Configuration
        self._off = False
        self._watcher = SettingsWatcher(settings, self._offer, counters, settle=self._is_settled)
        self._switch = OffSwitch(off_path(settings), self._switch_off)

    async def serve(
        self,
        listener: socket.socket,
        tls: ssl.SSLContext | None,
        drain_s: float,
        ready: Callable[[list[Upstream]], None],
    ) -> Ended:
        """Serve until SIGTERM or SIGINT, and for up to `drain_s` seconds what is open then.

        A second signal ends it at once.

        Args:
            listener: a socket that is bound.
            tls: the certificate, for https.
            drain_s: see above.
            ready: called when it listens, with the upstreams that cannot be reached.
        """
        loop = asyncio.get_running_loop()
        told = asyncio.Semaphore(0)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.release)
        gateway = Gateway(self._options, self._offered, self._counters)
        runner = runner_of(gateway)
        try:
            await runner.setup()
            absent = await gateway.reachability.look()
            self._gateway, self._loop = gateway, loop
            gateway.take_up(self._offered)  # whatever the file has come to say
            gateway.switch_off(self._off)
            await web.SockSite(runner, listener, ssl_context=tls, backlog=4096).start()
            ready(absent)
            await told.acquire()
            gateway.draining = True
            again = asyncio.create_task(told.acquire())
            drained = asyncio.create_task(gateway.drained())
            await asyncio.wait(
                {again, drained}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED
            )
            again.cancel()
            drained.cancel()
            await gateway.cut()
        finally:
            self._loop = None
            await runner.cleanup()
            await gateway.close()
        return Ended(gateway.was_cut)

    def close(self) -> None:
        """Stop watching, and write what is left of the log."""
        self._switch.close()
        self._watcher.close()
        self._opener.close()

    def _offer(self, settings: Settings) -> dict[str, Any]:
        """In the watcher's thread: make settings ready, and tell the gateway."""
        self._offered = self._opener.open(settings)
        if self._gateway is not None and self._loop is not None:
            self._counters.settings_changes += 1
            self._loop.call_soon_threadsafe(self._gateway.take_up, self._offered)
        return {"predictor": settings.predictor}

    def _switch_off(self, off: bool) -> None:
        """In the switch's thread."""
        self._off = off
        if self._gateway is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._gateway.switch_off, off)

    def _is_settled(self) -> bool:
        return self._gateway is not None and self._gateway.configuration is self._offered
