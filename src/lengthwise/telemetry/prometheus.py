"""The scheduler's numbers for Prometheus: on a port of their own, and on vLLM's own `/metrics`.

The scheduler counts in the engines' processes, vLLM's page is made in an API server's. So each
engine keeps a file, and each look at the page reads the files of all engines that live: every
engine is there once, however many API servers there are.

The files lie in the folder that the environment variable `LENGTHWISE_ENGINES` names, and each is
replaced as a whole once a second. The variable comes from `lengthwise serve`; without it nothing is
written.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from lengthwise.counters import BOUNDS, HELP
from lengthwise.errors import InputError, one_line
from lengthwise.files import parse_json, read_bounded, replace_file
from lengthwise.settings.polling import Polling

logger = logging.getLogger("vllm.lengthwise")

ENGINES: Final = "LENGTHWISE_ENGINES"  #: the environment variable that names the folder
SCHEMA: Final = "lengthwise.engine/1"

_EVERY_S: Final = 1.0
_MOST_BYTES: Final = 1 << 20


@dataclass(frozen=True)
class EngineState:
    """What an engine says of itself.

    Attributes:
        engine: its number in a data-parallel server.
        model_name: the name that the model is served by.
        policy: the policy in force.
        counters: totals since its start, by name.
        gauges: present values, by name.
        queue_times: see `QueueTimes.snapshot`.
    """

    engine: int
    model_name: str
    policy: str
    counters: Mapping[str, int]
    gauges: Mapping[str, float]
    queue_times: list[dict[str, Any]]


class EngineFile:
    """Keeps an engine's file true until it is closed; the file is then removed.

    Args:
        folder: where it is.
        state: what it says, called in a thread of its own.
        engine: the engine's number.
    """

    def __init__(self, folder: Path, state: Callable[[], EngineState], engine: int) -> None:
        self.path = folder / f"engine-{engine}-{os.getpid()}.json"
        self._state = state
        self._polling = Polling("engine's numbers", _EVERY_S, self._write)

    def close(self) -> None:
        """Stop, and take the file away."""
        self._polling.close()
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        said = {
            "schema": SCHEMA,
            "pid": os.getpid(),
            "started": started(os.getpid()),
            "time": round(time.time(), 3),
            **vars(self._state()),
        }
        replace_file(self.path, json.dumps(said).encode())


def engines_folder() -> Path | None:
    """The folder that the environment names; None where it names none."""
    named = os.environ.get(ENGINES)
    return Path(named) if named else None


def read_engines(folder: Path) -> tuple[list[EngineState], dict[Path, str]]:
    """What the living engines of a folder say.

    Returns:
        Their states by number, and the files that were left out with the reason: `dead` (its
        process has ended), `torn` (it cannot be read), `version` (of another version) or `twice`
        (another engine that began later has its number).
    """
    newest: dict[int, tuple[int, Path, EngineState]] = {}
    left_out: dict[Path, str] = {}
    for path in sorted(folder.glob("engine-*.json")):
        try:
            said = parse_json(read_bounded(path, _MOST_BYTES))
            if said["schema"] != SCHEMA:
                left_out[path] = "version"
                continue
            pid, began = int(said["pid"]), said["started"]
            fields = {name: said[name] for name in EngineState.__dataclass_fields__}
            state = EngineState(**{**fields, "engine": int(said["engine"])})
        except FileNotFoundError:  # closed since the folder was listed
            continue
        except (OSError, ValueError, KeyError, TypeError):
            left_out[path] = "torn"
            continue
        if not alive(pid, began):
            left_out[path] = "dead"
            continue
        number, age = state.engine, int(began or 0)
        if number in newest:
            older = path if age < newest[number][0] else newest[number][1]
            left_out[older] = "twice"
            if older == path:
                continue
        newest[number] = age, path, state
    return [newest[number][2] for number in sorted(newest)], left_out


def started(pid: int) -> int | None:
    """When a process began, in ticks since the machine did; None where the system does not say."""
    try:
        # Field 22; the second one is a name in parentheses that may hold anything.
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def alive(pid: int, began: int | None) -> bool:
    """Whether the process that began then still runs, and not another one by its number."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass
    except (OSError, OverflowError):
        return False
    return began is None or started(pid) in (began, None)


_QUEUE: Final = "lengthwise_queue_time_seconds"
_SAYS: Final = "Time from arrival to the first step, by priority class and predicted output tokens"
_TRIED: Final = 64  # ports, from the one that was asked for
_LAST_PORT: Final = 65535
_LABELS: Final = ("engine", "model_name")
# In plain text, and not packed, so that lines can be added.
_NEGOTIATED: Final = (b"accept", b"accept-encoding")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def families(engines: Sequence[EngineState], names: Sequence[str]) -> Iterator[Any]:
    """All counters, gauges and histograms of some engines.

    Args:
        engines: whose numbers.
        names: the labels that tell them apart: fields of `EngineState`.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    labelled = [([str(getattr(each, name)) for name in names], each) for each in engines]
    for name, says in HELP.items():
        counter = CounterMetricFamily(f"lengthwise_{name}", says, labels=names)
        for labels, each in labelled:
            counter.add_metric(labels, each.counters.get(name, 0))
        yield counter
    for name in sorted({name for each in engines for name in each.gauges}):
        gauge = GaugeMetricFamily(f"lengthwise_{name}", name.replace("_", " "), labels=names)
        for labels, each in labelled:
            if name in each.gauges:
                gauge.add_metric(labels, each.gauges[name])
        yield gauge
    policy = GaugeMetricFamily(
        "lengthwise_policy_info", "The policy in force", labels=[*names, "policy"]
    )
    queue = HistogramMetricFamily(_QUEUE, _SAYS, labels=[*names, "class", "predicted_tokens"])
    for labels, each in labelled:
        policy.add_metric([*labels, each.policy], 1)
        for one in each.queue_times:
            queue.add_metric(
                [*labels, one["class"], one["predicted_tokens"]], _buckets(one), one["sum"]
            )
    yield policy
    yield queue


def _buckets(one: Mapping[str, Any]) -> list[tuple[str, float]]:
    """How many there were up to each bound."""
    bounds = [*map(str, BOUNDS), "+Inf"]
    return list(zip(bounds, accumulate(one["counts"]), strict=True))


class MetricsServer:
    """Serves counters and gauges until it is closed.

    Args:
        host: the address to listen at; None for all of them.
        port: the port to listen at; where another program has it, the next free one.
        state: the numbers of now; the engine's own number is a label of every value.

    Attributes:
        port: the one that it listens at.

    Raises:
        InputError: neither the port nor one of those behind it can be opened.
    """

    def __init__(
        self,
        host: str | None,
        port: int,
        state: Callable[[], EngineState],
    ) -> None:
        from prometheus_client import CollectorRegistry

        self.key = (host, port)
        registry = CollectorRegistry()
        registry.register(_Collector(state))
        self.port, self._server, self._thread = _listen(host, port, registry)
        if self.port != port:
            logger.warning(
                "Lengthwise: metrics_port %d is in use, metrics are on port %d", port, self.port
            )

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    """Reads all values anew each time that it is asked."""

    def __init__(self, state: Callable[[], EngineState]) -> None:
        self._state = state

    def collect(self) -> Iterator[Any]:
        """The values as Prometheus's families."""
        return families([self._state()], ["engine"])


def _listen(host: str | None, port: int, registry: Any) -> tuple[int, Any, Any]:
    """Listen at the first of some ports that is free: the port, the server and its thread."""
    from prometheus_client import start_http_server

    for candidate in range(port, min(port + _TRIED, _LAST_PORT + 1)):
        try:
            return candidate, *start_http_server(candidate, host or "0.0.0.0", registry)
        except (OSError, UnicodeError) as error:  # the latter of a name with an empty part
            if getattr(error, "errno", None) != errno.EADDRINUSE:
                reason = getattr(error, "strerror", None) or error
                raise InputError(
                    f"metrics_port {candidate} cannot be opened at {host or 'any address'}: "
                    f"{one_line(reason)}; choose another"
                ) from error
    raise InputError(
        f"metrics_port {port} is in use, and so are the ports behind it: choose another"
    )


class Metrics:
    """`--middleware lengthwise.vllm.Metrics`: all but GET /metrics passes through it untouched."""

    def __init__(self, app: App) -> None:
        """Wrap `app`; the folder of the engines' files is what the environment names now."""
        self._app = app
        self._folder = engines_folder()
        self._said: set[tuple[Path, str]] = set()
        if self._folder is None:
            logger.warning(
                "Lengthwise: LENGTHWISE_ENGINES names no folder, so there is nothing to add to "
                "/metrics; `lengthwise serve` sets it"
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if self._folder is None or not _asks_for_metrics(scope):
            await self._app(scope, receive, send)
            return
        headers = [pair for pair in scope["headers"] if pair[0].lower() not in _NEGOTIATED]
        start: Message = {}
        body = bytearray()

        async def keep(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    await self._answer(scope, start, bytes(body), send)
            else:
                await send(message)

        await self._app({**scope, "headers": headers}, receive, keep)

    async def _answer(self, scope: Scope, start: Message, body: bytes, send: Send) -> None:
        if start["status"] == 200:
            body += self._page(parse_qs(scope.get("query_string", b"").decode()).get("name[]"))
        headers = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _page(self, names: list[str] | None) -> bytes:
        """Our part of the page; empty, and said in the log, where it cannot be made."""
        from prometheus_client import CollectorRegistry, generate_latest

        try:
            registry = CollectorRegistry(auto_describe=names is not None)
            registry.register(self)
            page: bytes = generate_latest(
                registry if names is None else registry.restricted_registry(names)
            )
        except Exception as error:  # vLLM's part is there in any case
            self._say_once(Path(), f"{type(error).__name__}: {one_line(error)}")
            return b""
        return page

    def collect(self) -> Iterator[Any]:
        """The families of all living engines, and how many files were left out."""
        from prometheus_client.core import GaugeMetricFamily

        assert self._folder is not None
        engines, left_out = read_engines(self._folder)
        for path, reason in left_out.items():
            self._say_once(path, reason)
        yield from families(engines, _LABELS)
        unread = GaugeMetricFamily(
            "lengthwise_engine_files_left_out",
            "Files of engines that are dead, torn, of another version or there twice",
            labels=["reason"],
        )
        for reason, count in sorted(Counter(left_out.values()).items()):
            unread.add_metric([reason], count)
        yield unread

    def _say_once(self, path: Path, reason: str) -> None:
        if (path, reason) not in self._said:
            self._said.add((path, reason))
            logger.warning("Lengthwise: left out of /metrics: %s: %s", path, reason)


def _asks_for_metrics(scope: Scope) -> bool:
    if scope["type"] != "http" or scope["method"] != "GET":
        return False
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.rstrip("/") == "/metrics"
