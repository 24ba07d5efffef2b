"""Takes a request's body in, and no more of it than there is room for."""

from __future__ import annotations

import asyncio

import aiohttp
from aiohttp import web

from lengthwise.gateway.limits import Place, RefusedError


async def take_in(request: web.Request, place: Place, patience_s: float) -> None:
    """Keep a request's body, every part of it counted before the next is read.

    Args:
        request: the client's.
        place: where it is kept.
        patience_s: with a client that sends nothing.

    Raises:
        RefusedError: there is no room for it, or it did not come.
    """
    parts: list[bytes] = []
    try:
        while True:
            async with asyncio.timeout(patience_s):
                part = await request.content.readany()
            if not part:
                place.body = b"".join(parts)
                return
            place.keep(len(part))
            parts.append(part)
    except TimeoutError:
        reason = f"nothing of the body came for {patience_s:g} s"
        raise RefusedError(408, reason, "incomplete") from None
    except (aiohttp.ClientError, web.RequestPayloadError, OSError):
        raise RefusedError(400, "the body broke off", "incomplete") from None
