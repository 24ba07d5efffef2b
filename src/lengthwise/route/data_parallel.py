"""ASGI middleware that tells vLLM's data parallel which rank a request goes to.

    LENGTHWISE_RANKS=4 vllm serve MODEL --data-parallel-size 4 --middleware lengthwise.route.Ranks

vLLM balances by the number of requests (`DPLBAsyncMPClient` in v1/engine/core_client.py). It takes
a rank from the header `X-data-parallel-rank` instead, and this writes it: by predicted wait, as the
router of Ray Serve does, for the requests of one API server. A request that names its rank keeps
it.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from itertools import count
from typing import Any, Final

from lengthwise.errors import InputError
from lengthwise.files import parse_json
from lengthwise.hints.middleware import Application, BodyReader, Receive, Scope, Send, is_completion
from lengthwise.route.bookings import Bookings, WorkPredictor, body_of

# vLLM shows what is logged below its own name, and nothing else.
logger = logging.getLogger("vllm.lengthwise")

#: the configuration, since vLLM passes none
RANKS: Final = "LENGTHWISE_RANKS"
PREDICTOR: Final = "LENGTHWISE_RANKS_PREDICTOR"
TOKENIZER: Final = "LENGTHWISE_RANKS_TOKENIZER"
SLOTS: Final = "LENGTHWISE_RANKS_SLOTS"
ORDER: Final = "LENGTHWISE_RANKS_ORDER"

HEADER: Final = b"x-data-parallel-rank"
_MOST_BYTES: Final = 4_000_000
_SLOTS: Final = "256"


class Ranks:
    """Writes a rank into requests to `…/chat/completions` and `…/completions`."""

    def __init__(self, app: Application) -> None:
        """Wrap an application; everything else is in the environment.

        Raises:
            InputError: a variable is missing or makes no sense.
        """
        self._app = app
        ranks, slots = _number(RANKS, None), _number(SLOTS, _SLOTS)
        order = os.environ.get(ORDER, "shortest")
        if order not in ("shortest", "arrival"):
            raise InputError(f"{ORDER} must be 'shortest' or 'arrival', not {order!r}")
        self._books = Bookings(slots, shortest_first=order == "shortest")
        self._books.use(dict.fromkeys(range(ranks), sys.maxsize), time.monotonic())
        self._work = WorkPredictor(
            os.environ.get(PREDICTOR, "declared"), os.environ.get(TOKENIZER, "reference")
        )
        self._numbers = count()
        logger.info("Lengthwise: requests go to the one of %d ranks where they wait least", ranks)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if not is_completion(scope) or any(name == HEADER for name, _ in scope["headers"]):
            await self._app(scope, receive, send)
            return
        read = BodyReader(receive, _MOST_BYTES)
        body = await read.whole()
        expected = await self._work.work(_request(body))
        now, request = time.monotonic(), str(next(self._numbers))
        rank = self._books.choose(expected, now)
        self._books.book(request, rank, expected, now)
        headers = [*scope["headers"], (HEADER, str(rank).encode())]
        try:
            await self._app({**scope, "headers": headers}, read.replay, send)
        finally:
            self._books.release(request, time.monotonic())


def _request(body: bytes | None) -> dict[str, Any]:
    try:
        return body_of(parse_json(body or b"null"))
    except ValueError:
        return {}


def _number(name: str, default: str | None) -> int:
    text = os.environ.get(name) or default
    if text is None or not text.isdigit() or int(text) < 1:
        raise InputError(f"set {name} to a number from 1 on, not {text!r}")
    return int(text)
