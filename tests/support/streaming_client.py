"""A client that streams an answer of a server."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Iterator
from typing import Any

from lengthwise.predict.load import EXPECTED_TOKENS, TRUE_TOKENS
from tests.support.commands import DIRECT


class Client:
    """Asks one server for completions."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}/v1"

    def open(self, path: str, body: dict[str, object] | None = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers={"Content-Type": "application/json"},
        )
        return DIRECT.open(request, timeout=200)

    def complete(self, tokens: int, **more: object) -> dict[str, Any]:
        """The choice and the usage of an answer of a given length."""
        hints = {TRUE_TOKENS: tokens, EXPECTED_TOKENS: tokens}
        body = {"model": "llama-3-8b", "prompt": f"Write {tokens} words.", "max_tokens": 2000}
        with self.open("/completions", {**body, "vllm_xargs": hints, **more}) as response:
            answer = json.load(response)
        return {**answer["choices"][0], **answer["usage"]}

    def stream(self, tokens: int) -> Iterator[dict[str, Any]]:
        """The events of a streamed chat answer."""
        body = {
            "model": "llama-3-8b",
            "messages": [{"role": "user", "content": "Tell me a story"}],
            "stream": True,
            "stream_options": {"include_usage": True},
            "vllm_xargs": {TRUE_TOKENS: tokens},
        }
        with self.open("/chat/completions", body) as response:
            for line in response:
                text = line.decode().strip().removeprefix("data: ")
                if text and text != "[DONE]":
                    yield json.loads(text)
