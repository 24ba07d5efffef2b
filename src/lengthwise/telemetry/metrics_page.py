"""`--middleware lengthwise.vllm.Metrics`: the scheduler's numbers on vLLM's own `/metrics`.

The scheduler counts in the engines' processes, the page is made in an API server's. Each engine
keeps a file (`engine_file`), and each look at the page reads the files of all engines that live: so
every engine is there once, however many API servers there are.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from lengthwise.errors import one_line
from lengthwise.telemetry.engine_file import engines_folder, read_engines
from lengthwise.telemetry.prometheus import families

logger = logging.getLogger("vllm.lengthwise")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_LABELS: Final = ("engine", "model_name")
# In plain text, and not packed, so that lines can be added.
_NEGOTIATED: Final = (b"accept", b"accept-encoding")


class Metrics:
    """An ASGI middleware; all but GET /metrics passes through it untouched."""

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
