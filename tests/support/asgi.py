"""An application behind the middleware of hints, and requests to it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lengthwise.hints.service import OUTCOMES, hint_requests

TEXT = "Name three rivers."
CHAT = {"messages": [{"role": "user", "content": TEXT}], "model": "m", "stream": True}
OURS = "lengthwise_expected_tokens"

Message = dict[str, Any]


def counted() -> dict[str, float]:
    return {name: hint_requests().labels(name)._value.get() for name in OUTCOMES}


@contextmanager
def counts(**expected: int) -> Iterator[None]:
    """Exactly these outcomes are counted meanwhile."""
    before = counted()
    yield
    after = counted()
    assert {n: after[n] - before[n] for n in after if after[n] != before[n]} == expected


class Seen:
    """An application that answers with two parts of a stream, and keeps what came to it."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.scope: dict[str, Any] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope, self.messages = scope, []
        while not self.messages or self.messages[-1].get("more_body", False):
            self.messages.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for part, more in ((b"data: 1\n\n", True), (b"data: [DONE]\n\n", False)):
            await send({"type": "http.response.body", "body": part, "more_body": more})

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages)

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.scope["headers"])


async def send(
    app: Any,
    parts: Sequence[bytes],
    path: str = "/v1/chat/completions",
    headers: Sequence[tuple[bytes, bytes]] = (),
    gone: bool = False,
) -> list[Message]:
    """One request by the ASGI interface: what was sent back."""
    coming: list[Message] = [
        {"type": "http.request", "body": part, "more_body": gone or place + 1 < len(parts)}
        for place, part in enumerate(parts)
    ]
    coming.append({"type": "http.disconnect"})
    sent: list[Message] = []

    async def receive() -> Message:
        return coming.pop(0)

    async def take(message: Message) -> None:
        sent.append(message)

    length = (b"content-length", str(sum(map(len, parts))).encode())
    scope = {"type": "http", "method": "POST", "path": path, "headers": [length, *headers]}
    await app(scope, receive, take)
    return sent
