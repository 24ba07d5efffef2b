"""One request to one upstream, and its answer back: bytes as they are, as fast as they are taken.

A request is never sent a second time from here. Whatever happens to it, its client gets the
upstream's own answer, or one error that says what happened.
"""

from __future__ import annotations

import asyncio
import io
import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, Protocol

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from lengthwise.errors import LengthwiseError
from lengthwise.gateway.upstream import Upstream, reason_of
from lengthwise.hints.service import error_body, error_response

#: for one connection alone, and not for whoever is at its other end (RFC 9110, section 7.6.1)
_HOP_BY_HOP: Final = (
    "Connection",
    "Keep-Alive",
    "Proxy-Authenticate",
    "Proxy-Authorization",
    "Proxy-Connection",
    "TE",
    "Trailer",
    "Transfer-Encoding",
    "Upgrade",
)
_OURS: Final = ("Host", "Expect")  # answered here, or written anew
_NOT_MADE_UP: Final = ("User-Agent", "Accept", "Accept-Encoding", "Content-Type")
_ADDRESSES: Final = ("Location", "Content-Location")  # headers that may name the upstream
_HARMLESS: Final = ("GET", "HEAD", "OPTIONS")  # methods that change nothing, however often
_LARGE: Final = 1 << 20  # bytes of a body that is written in parts


class NotTakenError(LengthwiseError):
    """The upstream did not take the connection: nothing of the request was sent."""


class BrokenOffError(LengthwiseError):
    """The upstream took the connection and closed it before it answered."""


class Passing(Protocol):
    """Looks at an answer as it passes, and says what is passed on."""

    @property
    def changes(self) -> bool:
        """Whether that may be less than what came."""

    def feed(self, data: bytes) -> bytes:
        """What is passed on of these bytes."""

    def flush(self) -> bytes:
        """What was kept back."""


@dataclass(frozen=True)
class Patience:
    """How long a silence may last, s.

    Attributes:
        connect_s: until an upstream takes a connection.
        upstream_s: until an upstream sends something.
        client_s: until a client sends or takes something.
    """

    connect_s: float = 5.0
    upstream_s: float = 600.0
    client_s: float = 60.0


class Relay:
    """Sends requests on.

    Args:
        session: of `new_session`.
        patience: with whom, and for how long.
    """

    def __init__(self, session: aiohttp.ClientSession, patience: Patience) -> None:
        self._session, self._patience = session, patience
        self.cutting = False  #: the time to shut down is over: what is cancelled gets an error

    async def __call__(
        self,
        request: web.Request,
        upstream: Upstream,
        body: bytes | None,
        passing: Callable[[Mapping[str, str]], Passing | None] | None = None,
        forwarded: Callable[[], None] = lambda: None,
        begun: Callable[[], None] = lambda: None,
    ) -> tuple[web.StreamResponse, str]:
        """Send a request to an upstream, and its answer to the client.

        Args:
            request: the client's.
            upstream: which one.
            body: what is sent; None: what the client sends, as it comes.
            passing: who looks at the answer, by its headers, which is then asked for as plain text.
            forwarded: called when the upstream has taken the connection and is sent the request.
            begun: called when the answer's head is there: the body is not needed any more.

        Returns:
            What the client got, and what that counts as.

        Raises:
            NotTakenError: nothing was sent.
        """
        try:
            answer = await self._send(
                request, upstream, body, plain=passing is not None, forwarded=forwarded
            )
        except asyncio.CancelledError:
            if not self.cutting:
                raise
            reason = "the gateway shut down before the answer began"
            return error_response(503, reason, retry_after_s=1), "cut"
        except (
            aiohttp.ClientConnectorError,
            aiohttp.ConnectionTimeoutError,
        ) as error:
            raise NotTakenError(reason_of(error)) from None
        except TimeoutError:
            reason = f"the upstream said nothing for {self._patience.upstream_s:g} s"
            return error_response(504, reason), "silent"
        except (aiohttp.ClientError, OSError, BrokenOffError) as error:
            why = str(error) if isinstance(error, BrokenOffError) else reason_of(error)
            reason = (
                f"the upstream broke off before it answered ({why}); the request was not sent "
                "again, since it may have begun"
            )
            return error_response(502, reason), "failed"
        del body  # large ones are not kept while an answer takes its time
        async with answer:
            begun()
            looking = None if passing is None else passing(answer.headers)
            return await self._pass_on(request, upstream, answer, looking)

    async def _send(
        self,
        request: web.Request,
        upstream: Upstream,
        body: bytes | None,
        plain: bool,
        forwarded: Callable[[], None],
    ) -> aiohttp.ClientResponse:
        headers = _end_to_end(request.headers)
        if plain:
            headers["Accept-Encoding"] = "identity"
        data: Any = body
        if body is not None:
            headers["Content-Length"] = str(len(body))
            if len(body) > _LARGE:
                data = io.BytesIO(body)
        elif request.can_read_body:
            data = request.content
        return await self._session.request(
            request.method,
            URL(upstream.url + request.raw_path, encoded=True),
            data=data,
            headers=headers,
            allow_redirects=False,
            skip_auto_headers=_NOT_MADE_UP,
            trace_request_ctx=forwarded,
            middlewares=() if request.method in _HARMLESS else (_send_once,),
        )

    async def _pass_on(
        self,
        request: web.Request,
        upstream: Upstream,
        answer: aiohttp.ClientResponse,
        passing: Passing | None,
    ) -> tuple[web.StreamResponse, str]:
        headers = _end_to_end(answer.headers)
        for name in _ADDRESSES:
            if name in headers:
                headers[name] = through_gateway(headers[name], upstream.url)
        if passing is not None and passing.changes:
            headers.pop("Content-Length", None)
        response = web.StreamResponse(status=answer.status, reason=answer.reason, headers=headers)
        taken = True  # by the client
        try:
            await response.prepare(request)
            async for data in answer.content.iter_any():
                if passing is not None:
                    data = passing.feed(data)
                if data:
                    taken = False
                    async with asyncio.timeout(self._patience.client_s):
                        await response.write(data)
                    taken = True
            taken = False
            async with asyncio.timeout(self._patience.client_s):
                if passing is not None and (rest := passing.flush()):
                    await response.write(rest)
                await response.write_eof()  # waits until the client has taken nearly all of it
        except asyncio.CancelledError:
            if not self.cutting:
                raise
            return await _broken(request, response, "the gateway shut down"), "cut"
        except TimeoutError:
            if not taken:
                _hang_up(request)
                return response, "slow"
            reason = f"the upstream said nothing for {self._patience.upstream_s:g} s"
            return await _broken(request, response, reason), "broken"
        except aiohttp.ClientConnectionResetError:
            return response, "gone"
        except (aiohttp.ClientError, OSError) as error:
            if not taken or request.transport is None or request.transport.is_closing():
                return response, "gone"
            reason = f"the upstream broke off: {reason_of(error)}"
            return await _broken(request, response, reason), "broken"
        return response, "answered"


def new_session(
    patience: Patience, trusted: ssl.SSLContext | Literal[True]
) -> aiohttp.ClientSession:
    """Connections to upstreams: as many as there are requests, kept while they are in use.

    Args:
        patience: with upstreams.
        trusted: what https is checked against; True for the system's authorities.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_headers_sent.append(_tell_forwarded)
    return aiohttp.ClientSession(
        # A server that closes a connection just as it is used again looks like one that breaks
        # off, and the request must not be sent twice: vLLM's closes those unused for 5 s.
        connector=aiohttp.TCPConnector(limit=0, ssl=trusted, keepalive_timeout=3.0),
        timeout=aiohttp.ClientTimeout(
            total=None, sock_connect=patience.connect_s, sock_read=patience.upstream_s
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        trace_configs=[trace],
    )


async def _send_once(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a DELETE or PUT again whose connection was closed."""
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:  # nothing was sent
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise BrokenOffError(reason_of(error)) from None


async def _tell_forwarded(_: aiohttp.ClientSession, context: Any, __: object) -> None:
    """A request has its connection. What is not relayed, such as /metrics, tells nobody."""
    forwarded = context.trace_request_ctx
    if forwarded is not None:
        forwarded()


async def _broken(
    request: web.Request, response: web.StreamResponse, reason: str
) -> web.StreamResponse:
    """End an answer that has begun: a stream of events by an error, anything else by breaking off.

    Either way the client cannot take what it has for the whole.
    """
    if response.prepared and response.headers.get("Content-Type", "").startswith(
        "text/event-stream"
    ):
        event = json.dumps(error_body(502, reason))
        try:
            async with asyncio.timeout(1.0):
                # An event may have been cut in its middle: an empty line ends it.
                await response.write(f"\n\ndata: {event}\n\n".encode())
                await response.write_eof()
        except (OSError, TimeoutError, aiohttp.ClientError):
            _hang_up(request)
    else:
        _hang_up(request)
    return response


def through_gateway(address: str, upstream: str) -> str:
    """An address that an upstream's answer names, as a client reaches it: within the upstream, by
    the path at the gateway; elsewhere, unchanged.

    A server that redirects (`/v1/completions/` to `/v1/completions`) names itself as it was called,
    and clients would leave the queue.
    """
    try:
        there, base = URL(address, encoded=True), URL(upstream)
        host, own_host = there.host_port_subcomponent, base.host_port_subcomponent
    except ValueError:
        return address
    # Whatever the scheme: behind whoever ends its TLS a server believes that it is http.
    if there.absolute and str(host).lower() != str(own_host).lower():
        return address
    if not there.absolute and not address.startswith("/"):
        return address
    prefix = base.raw_path.rstrip("/")
    if not f"{there.raw_path}/".startswith(f"{prefix}/"):
        return address
    # One slash at the beginning: two would begin the name of a host.
    path = "/" + there.raw_path_qs.removeprefix(prefix).lstrip("/")
    return f"{path}#{there.raw_fragment}" if there.raw_fragment else path


def _hang_up(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


def _end_to_end(headers: Mapping[str, str]) -> CIMultiDict[str]:
    """Headers without those for one connection alone."""
    kept = CIMultiDict(headers)
    named = [name.strip() for name in headers.get("Connection", "").split(",")]
    for name in (*_HOP_BY_HOP, *_OURS, *filter(None, named)):
        kept.popall(name, None)
    return kept
