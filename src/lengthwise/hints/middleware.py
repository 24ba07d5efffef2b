"""ASGI middleware that writes a predicted length into the requests that pass.

    vllm serve MODEL --middleware lengthwise.hints.Middleware      # LENGTHWISE_HINTS_PREDICTOR=…
    app.add_middleware(Middleware, predictor="build/p")            # Starlette, FastAPI, LiteLLM

Only the body of a request changes, and its length; answers, streamed or not, are not touched.
Whatever goes wrong, the request is passed on as it came, and counted.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final

from lengthwise.errors import InputError, LengthwiseError, one_line
from lengthwise.files import parse_json
from lengthwise.hints.estimate import Estimator, estimator_of
from lengthwise.hints.question import (
    DEFAULT_TARGETS,
    XARGS,
    declared_tokens,
    missing_targets,
    parse_targets,
    write_deadline,
    write_hints,
    write_tenant,
)
from lengthwise.hints.service import hint_requests
from lengthwise.predict.prediction import deadline_ms

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

#: the configuration where nothing can be passed, as with `vllm serve --middleware`
PREDICTOR: Final = "LENGTHWISE_HINTS_PREDICTOR"
TOKENIZER: Final = "LENGTHWISE_HINTS_TOKENIZER"
WRITE: Final = "LENGTHWISE_HINTS_WRITE"

#: llm-d's header of the milliseconds to the first token, which an engine does not see
DEADLINE: Final = b"x-llm-d-slo-ttft-ms"
#: llm-d's header of whose a request is, and what it was called before
TENANTS: Final = (b"x-llm-d-inference-fairness-id", b"x-gateway-inference-fairness-id")

_PATHS: Final = ("/chat/completions", "/completions")
_MOST_BYTES: Final = 4_000_000
_PATIENCE_S: Final = 0.25


class Middleware:
    """Writes hints into requests to `…/chat/completions` and `…/completions`."""

    def __init__(
        self,
        app: Application,
        predictor: str | None = None,
        *,
        tokenizer: str | None = None,
        write: Iterable[str] | str | None = None,
        most_bytes: int = _MOST_BYTES,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        """Wrap an application. Nothing is loaded before the server starts up.

        Args:
            app: what the requests are passed on to.
            predictor: what `load_predictor` takes, or the URL of a `lengthwise predict-server`;
                None: the environment variable LENGTHWISE_HINTS_PREDICTOR says.
            tokenizer: of the served model, where the predictor does not bring it;
                LENGTHWISE_HINTS_TOKENIZER.
            write: of `TARGETS`, or their names separated by commas; `vllm_xargs,nvext` unless
                given; LENGTHWISE_HINTS_WRITE.
            most_bytes: requests with larger bodies are passed on unread.
            patience_s: how long a request may wait for its prediction.
        """
        self._app = app
        self._predictor = predictor or os.environ.get(PREDICTOR)
        self._tokenizer = tokenizer or os.environ.get(TOKENIZER)
        self._write = write or os.environ.get(WRITE) or DEFAULT_TARGETS
        self._targets: tuple[str, ...] = ()
        self._most_bytes, self._patience_s = most_bytes, patience_s
        self._opening: asyncio.Task[Estimator] | None = None
        self._complained: set[str] = set()  # of what

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif is_completion(scope):
            await self._pass_on(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Load with the server's start, and refuse the start where that is impossible."""
        try:
            await self._ready()
        except LengthwiseError as error:
            await receive()
            reason = f"Lengthwise: {error}"
            await send({"type": "lifespan.startup.failed", "message": reason})
            return
        try:
            await self._app(scope, receive, send)
        finally:
            await (await self._ready()).close()

    async def _ready(self) -> Estimator:
        """The estimator, opened once, by whoever needs it first."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        return await asyncio.shield(self._opening)

    async def _open(self) -> Estimator:
        if not self._predictor:
            raise InputError(
                f"no predictor: set {PREDICTOR} to a folder that lengthwise train wrote, or to the "
                "URL of a lengthwise predict-server"
            )
        given = self._write if isinstance(self._write, str) else ",".join(self._write)
        self._targets = parse_targets(given)
        estimator = estimator_of(self._predictor, self._tokenizer)
        await estimator.open()
        return estimator

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        read = BodyReader(receive, self._most_bytes)
        body = await read.whole()
        if body is None:
            # Too large, or its client has gone: what was read of it is told again.
            if not read.gone:
                hint_requests().labels("too_large").inc()
            await self._app(scope, read.replay, send)
            return
        outcome, changed = await self._rewritten(body, dict(scope["headers"]))
        hint_requests().labels(outcome).inc()
        if changed is None:
            await self._app(scope, read.replay, send)
            return
        read.replace(changed)
        headers = _with_length(scope["headers"], len(changed))
        await self._app({**scope, "headers": headers}, read.replay, send)

    async def _rewritten(
        self, body: bytes, headers: Mapping[bytes, bytes]
    ) -> tuple[str, bytes | None]:
        """What becomes of a body, and its new bytes; None where it stays."""
        try:
            request = parse_json(body)
            if not isinstance(request, dict):
                return "unreadable", None
            outcome, changed = await self._in_time(request)
            milliseconds = deadline_ms(headers.get(DEADLINE, b"").decode("latin-1"))
            tenant = _tenant(headers)
            if milliseconds is not None and XARGS in self._targets:
                changed = write_deadline(changed or request, milliseconds)
            if tenant is not None and XARGS in self._targets:
                changed = write_tenant(changed or request, tenant)
            return outcome, None if changed is None else json.dumps(changed).encode()
        except (InputError, ValueError, RecursionError):
            return "unreadable", None

    async def _in_time(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
        """`_hinted`, whatever a predictor does: the request is served."""
        try:
            async with asyncio.timeout(self._patience_s):
                return await self._hinted(request)
        except TimeoutError:
            late = LengthwiseError(f"no prediction within {self._patience_s:g} s")
            self._complain("failed", late)
            return "late", None
        except (InputError, ValueError, RecursionError):
            return "unreadable", None  # whose it is, and until when it is due, is still written
        except Exception as error:
            self._complain("failed", error)
            return "failed", None

    async def _hinted(self, request: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
        try:
            estimator = await self._ready()
        except InputError as error:  # what is wrong is not the request
            raise LengthwiseError(str(error)) from None
        declared = declared_tokens(request)
        if len(declared) > 1:
            lengths = " and ".join(f"{length:g}" for length in sorted(declared))
            says = f"one names {lengths} tokens: whoever sends it should name one length"
            self._complain("contradictory", InputError(says))
            return "contradictory", None
        if not missing_targets(request, self._targets):
            return "kept", None
        if declared:
            return "declared", write_hints(request, declared.pop(), self._targets)
        expected = await estimator.expected(request)
        return "written", write_hints(request, expected, self._targets)

    def _complain(self, what: str, error: Exception) -> None:
        """Say the first time why there are no hints; the counter says how often."""
        if what not in self._complained:
            self._complained.add(what)
            # Messages of ours never quote a prompt; those of others might.
            ours = isinstance(error, LengthwiseError)
            reason = one_line(error) if ours else type(error).__name__
            logger.warning("Lengthwise: requests are passed on without hints: %s", reason)


class BodyReader:
    """Reads a request's body, and tells it again to whoever asks next."""

    def __init__(self, receive: Receive, most_bytes: int) -> None:
        self._receive, self._most_bytes = receive, most_bytes
        self._messages: list[Message] = []
        self.gone = False  #: whether the client went before its body was complete

    async def whole(self) -> bytes | None:
        """The body; None where it is too large, or its client has gone."""
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            self._messages.append(message)
            if message["type"] != "http.request":
                self.gone = True
                return None
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._most_bytes:
                return None
            if not message.get("more_body", False):
                return b"".join(parts)

    def replace(self, body: bytes) -> None:
        """Tell this instead."""
        self._messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay(self) -> Message:
        """The next message: those that were read, then whatever comes."""
        return self._messages.pop(0) if self._messages else await self._receive()


def is_completion(scope: Scope) -> bool:
    """Whether a request asks for completions, in a body that can be read."""
    if scope["type"] != "http" or scope["method"] != "POST":
        return False
    if not scope["path"].endswith(_PATHS):
        return False
    # A compressed body is for whoever understands it.
    return not any(name == b"content-encoding" for name, _ in scope["headers"])


def _tenant(headers: Mapping[bytes, bytes]) -> str | None:
    """The tenant that a header names."""
    named = next((headers[name] for name in TENANTS if headers.get(name)), None)
    return None if named is None else named.decode("latin-1")


def _with_length(headers: Iterable[tuple[bytes, bytes]], length: int) -> list[tuple[bytes, bytes]]:
    kept = [
        (name, value)
        for name, value in headers
        if name not in (b"content-length", b"transfer-encoding")
    ]
    return [*kept, (b"content-length", str(length).encode())]
