"""The gateway's routes, what becomes of each request, and a gateway's whole life.

What is generated waits for its turn; everything else is passed on as it comes. Neither prompts nor
keys are ever logged.

A gateway begins to listen, takes settings up, and ends politely.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import signal
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web
from prometheus_client import (
    CONTENT_TYPE_LATEST,
)

from lengthwise.counters import Counters
from lengthwise.gateway.bodies import (
    GENERATE,
    AnswerUsage,
    Asked,
    asking_for_usage,
    clamped_priority,
    read_aside,
    take_in,
)
from lengthwise.gateway.configuration import Configuration, Opener, Options, discipline_of
from lengthwise.gateway.lengths import Lengths, Measured
from lengthwise.gateway.limits import Keys, Place, RefusedError, Room
from lengthwise.gateway.prometheus import GatewayMetrics
from lengthwise.gateway.ranked_queue import Dispatcher, Entry, Queue
from lengthwise.gateway.relay import NotTakenError, Relay, new_session
from lengthwise.gateway.upstream import FIRST_LIMIT, Pool, Reachability, Upstream, Watch
from lengthwise.hints.service import error_response, place_of
from lengthwise.settings import Settings, off_path
from lengthwise.settings.file import OffSwitch, SettingsWatcher

logger = logging.getLogger("lengthwise.gateway")


_LEARNT_FROM: Final = ("/chat/completions", "/completions")
_SHUTTING_DOWN: Final = "the gateway is shutting down: ask another one, or come again"


class Gateway:
    """A queue in front of some servers. To be made in the event loop that it is to serve in.

    Args:
        options: see there.
        configuration: what the settings say now; `take_up` exchanges it.
        counters: the scheduler's.

    Attributes:
        draining: nothing new is taken.
        was_cut: how many answers were cut off by `cut`.
    """

    def __init__(self, options: Options, configuration: Configuration, counters: Counters) -> None:
        self._options, self._counters = options, counters
        first = options.max_inflight or FIRST_LIMIT
        self.pool = Pool([Upstream(url, first) for url in options.upstreams])
        self.room = Room(options.limits)
        queue = Queue(discipline_of(configuration.settings, self.pool.slots), counters)
        self.dispatcher = Dispatcher(queue, self.pool, self.room)
        self.metrics = GatewayMetrics(counters)
        self.draining = False
        self.was_cut = 0
        self.configuration = configuration
        self._keys = Keys()
        self._names = itertools.count()
        self._open: set[asyncio.Task[Any]] = set()
        self._begun: set[asyncio.Task[Any]] = set()  # of them, those that an upstream has
        self._idle = asyncio.Event()
        self._idle.set()
        self._lengths = Lengths(queue, counters)
        self._session = new_session(options.patience, options.upstream_ssl)
        self._relay = Relay(self._session, options.patience)
        self.reachability = Reachability(
            self.pool, options.patience.connect_s, options.upstream_ssl, self._wake
        )
        self._watch = None
        if options.max_inflight is None:
            self._watch = Watch(self.pool.upstreams, self._session, self._limits_changed)
        self.take_up(configuration)

    def take_up(self, configuration: Configuration) -> None:
        """Go by other settings from now on."""
        self.configuration = configuration
        self.dispatcher.queue.failed = False
        self._set_discipline()
        floor = configuration.settings.tau_floor
        self._lengths.use(configuration.source, floor)

    def app(self) -> web.Application:
        """The application that serves."""
        app = web.Application()
        app.router.add_get("/health", self.health)
        app.router.add_get("/metrics", self.scrape)
        app.router.add_route("*", "/{path:.*}", self.handle)
        return app

    async def close(self) -> None:
        """Let go of connections and threads."""
        if self._watch is not None:
            self._watch.close()
        self.reachability.close()
        self._lengths.close()
        await self._session.close()

    # The end ----------------------------------------------------------------------------------

    async def drained(self) -> None:
        """Wait until nothing is open."""
        await self._idle.wait()

    async def cut(self) -> None:
        """Refuse what waits, and end what is under way by an error."""
        self._relay.cutting = True
        self.dispatcher.close(_SHUTTING_DOWN)
        for task in self._begun:
            task.cancel()
        if self._open:
            await asyncio.wait(list(self._open), timeout=self._options.patience.connect_s)

    # Routes -----------------------------------------------------------------------------------

    async def health(self, _: web.Request) -> web.Response:
        """GET /health: 503 where a new request would be refused."""
        status = "ok" if self.pool.reachable else "no upstream can be reached"
        if self.draining:
            status = "shutting down"
        said = {"status": status, "policy": self.configuration.settings.policy}
        return web.json_response(said, status=200 if status == "ok" else 503)

    async def scrape(self, _: web.Request) -> web.Response:
        """GET /metrics: the gateway's own."""
        metrics = self.metrics
        metrics.waiting.set(self.dispatcher.queue.waiting)
        metrics.waiting_bytes.set(self.room.bytes)
        for each in self.pool.upstreams:
            metrics.in_flight.labels(each.url).set(each.in_flight)
            metrics.limit.labels(each.url).set(each.limit if each.known else 0)
            metrics.reachable.labels(each.url).set(each.reachable)
        return web.Response(body=metrics.page(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Everything else: queued where it generates, passed on where it does not."""
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        self._idle.clear()
        generates = request.method == "POST" and request.path.endswith(GENERATE)
        outcome = "defect"
        response: web.StreamResponse | None = None
        try:
            if self.draining:
                raise RefusedError(503, _SHUTTING_DOWN, "shut_down", 1)
            if not request.raw_path.startswith("/") or _is_websocket(request):
                raise RefusedError(501, "a gateway passes on HTTP requests only", "failed")
            handled = self._generate(request) if generates else self._pass_on(request)
            response, outcome = await handled
        except RefusedError as error:
            outcome = error.outcome
            response = error_response(error.status, str(error), error.retry_after_s)
        except asyncio.CancelledError:
            outcome = "cut" if self._relay.cutting else "gone"
            raise
        except Exception as error:  # a defect of ours: what it says may quote a prompt
            logger.error("a request failed: %s %s", type(error).__name__, place_of(error))
            response = error_response(500, f"the gateway failed: {type(error).__name__}")
        finally:
            self.was_cut += outcome == "cut"
            if generates:
                self.metrics.requests.labels(outcome).inc()
            elif response is not None:
                self.metrics.passed.labels(str(response.status)).inc()
            self._open.discard(task)
            if not self._open:
                self._idle.set()
        return response

    async def _pass_on(self, request: web.Request) -> tuple[web.StreamResponse, str]:
        while True:
            upstream = self.pool.any_reachable()
            upstream.passing += 1
            try:
                with self._begins():
                    return await self._relay(request, upstream, None)
            except NotTakenError as error:
                self.reachability.lost(upstream, str(error))
                if not self.pool.reachable:
                    raise self._unreachable() from None
            finally:
                upstream.passing -= 1

    async def _generate(self, request: web.Request) -> tuple[web.StreamResponse, str]:
        if not self.pool.reachable:
            raise self._unreachable()
        place = Place(self.room, self._keys.digest(request.headers))
        try:
            await take_in(request, place, self._options.patience.client_s)
            return await self._queued(request, place)
        finally:
            place.leave()
            place.let_go()

    async def _queued(self, request: web.Request, place: Place) -> tuple[web.StreamResponse, str]:
        """A request whose body is here: its turns, until an upstream takes it, and its answer."""
        dispatcher, now_s = self.dispatcher, time.monotonic()
        # A compressed body is for whoever understands it.
        body = await read_aside(b"" if "Content-Encoding" in request.headers else place.body)
        asked = body.asked
        usage = self._usage_of(request, asked)
        if usage is not None and usage.hide and body.values is not None:
            place.body = asking_for_usage(place.body, body.values)
        entry = Entry(
            str(next(self._names)),
            asked.answers,
            self._class_of(request, asked),
            asked.most_tokens,
            asked.deadline_s,
            self._tenant_of(request, place),
        )
        told = place.body if body.questions else b""
        del body  # what was read of it may be twenty times as large
        measured = Measured(entry, asked, told, now_s, dispatcher.add(entry))
        del told
        self._lengths.arrived(measured)

        def forwarded() -> None:
            dispatcher.forwarded(entry)

        def begun() -> None:
            place.let_go()
            self._lengths.begun(measured)

        try:
            while True:
                upstream = await dispatcher.turn(entry, now_s + self.room.limits.wait_s)
                place.leave()
                self._lengths.went(measured, time.monotonic())
                try:
                    with self._begins():
                        return await self._relay(
                            request, upstream, place.body, usage, forwarded, begun
                        )
                except NotTakenError as error:
                    self.metrics.sent_again.inc()
                    self.reachability.lost(upstream, str(error))
                    place.enter_again()
                    dispatcher.put_back(entry)
                    self._lengths.came_back(measured)
        finally:
            if measured.went_s is not None:
                self.metrics.wait_s.observe(measured.went_s - now_s)
            found = None if usage is None else usage.found
            self._lengths.ended(measured, found)
            dispatcher.release(entry, None if found is None else found.output_tokens)

    # Parts ------------------------------------------------------------------------------------

    @contextmanager
    def _begins(self) -> Iterator[None]:
        """Within, an upstream has the request: at the end it can only be cut off."""
        task = asyncio.current_task()
        assert task is not None
        self._begun.add(task)
        try:
            yield
        finally:
            self._begun.discard(task)

    def _usage_of(self, request: web.Request, asked: Asked) -> AnswerUsage | None:
        """What reads how long an answer was, where somebody wants to know."""
        source = self.configuration.source
        if not request.path.endswith(_LEARNT_FROM):
            return None
        silent = asked.streams and not asked.wants_usage
        if source.log is None and (source.predictor is None or silent):
            return None
        return AnswerUsage(hide=silent)

    def switch_off(self, off: bool) -> None:
        """Serve in the order of arrival, whatever the settings say, until it is switched on."""
        self.dispatcher.queue.off = off

    def state(self) -> dict[str, Any]:
        """What the status file says beside the settings and the counters; asked in any thread."""
        tau = self._lengths.tau
        shown = tau.tau
        off = self.dispatcher.queue.off
        return {
            **({"policy": "fcfs"} if off else {}),
            "off": off,
            "rolling_tau": None if shown is None else round(shown, 3),
            "below_tau_floor": tau.below_floor,
        }

    def _class_of(self, request: web.Request, asked: Asked) -> int:
        header = self._options.priority_header
        if header is not None:
            return clamped_priority(request.headers.get(header))
        return asked.priority if self.configuration.settings.believes_priority else 0

    def _tenant_of(self, request: web.Request, place: Place) -> str:
        header = self._options.tenant_header
        return place.key.hex() if header is None else request.headers.get(header, "")

    def _unreachable(self) -> RefusedError:
        reason = f"no upstream can be reached ({self.pool.refusals}): come again"
        return RefusedError(503, reason, "unreachable", 1)

    def _wake(self) -> None:
        self.dispatcher.wake()

    def _limits_changed(self) -> None:
        self._set_discipline()
        self._wake()

    def _set_discipline(self) -> None:
        """The default bound on overtaking depends on how many slots there are."""
        settings = self.configuration.settings
        self.dispatcher.queue.discipline = discipline_of(settings, self.pool.slots)


def _is_websocket(request: web.Request) -> bool:
    return request.headers.get("Upgrade", "").lower() == "websocket"


@dataclass(frozen=True)
class Ended:
    """How a gateway's life ended.

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
        url: where it will listen, by which the status file calls it.

    Raises:
        InputError: the settings, or what they name, cannot be used.
    """

    def __init__(
        self, options: Options, opener: Opener, settings: Path, counters: Counters, url: str
    ) -> None:
        self._options, self._opener, self._counters = options, opener, counters
        self._gateway: Gateway | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._offered: Configuration
        self._off = False
        self._watcher = SettingsWatcher(
            settings, self._offer, counters, self._state, self._is_settled, server=url
        )
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

    def _state(self) -> dict[str, Any]:
        """In the watcher's thread. What is switched off counts once the gateway has taken it up."""
        return {"off": self._off} if self._gateway is None else self._gateway.state()

    def _is_settled(self) -> bool:
        return self._gateway is not None and self._gateway.configuration is self._offered
