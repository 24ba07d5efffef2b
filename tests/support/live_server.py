"""A server as users run it, a crowd of clients, and an account of what each of them got."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import resource
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

from lengthwise.predict.load import EXPECTED_TOKENS, TRUE_TOKENS
from lengthwise.serve.listen import free_port
from lengthwise.settings import parse_settings, status_path
from tests.support.commands import assert_gone, children_of, started, wait_for

PRESET: Final = "a100:llama-3-8b"
MODEL: Final = "llama-3-8b"
GOOD: Final[dict[str, Any]] = {"policy": "srpt", "predictor": "declared"}
PATIENCE_S: Final = 300.0  #: after so long a request counts as hung; this machine may be busy

WHOLE, REFUSED, CUT, HUNG = "whole", "refused", "cut", "hung"


@dataclass(frozen=True)
class Ask:
    """A request of a client.

    Attributes:
        tokens: how long its answer is.
        leaves_after: the client goes away once it has so many tokens; None: it stays.
        hints: what it says beside (`vllm_xargs`).
        more: what else is in the body, in the place of what would be there.
    """

    tokens: int = 20
    leaves_after: int | None = None
    hints: dict[str, object] = field(default_factory=dict)
    more: dict[str, object] = field(default_factory=dict)

    def body(self) -> bytes:
        hints = {TRUE_TOKENS: self.tokens, EXPECTED_TOKENS: self.tokens, **self.hints}
        body = {
            "model": MODEL,
            "prompt": "Tell me more.",
            "max_tokens": 4000,
            "stream": True,
            "stream_options": {"include_usage": True},  # several tokens may come in one event
        }
        return json.dumps({**body, "vllm_xargs": hints, **self.more}).encode()


@dataclass(frozen=True)
class Got:
    """How a request ended: `whole`, `refused` with what the server said, `cut` off, `hung`."""

    how: str
    tokens: int = 0
    said: str = ""


class Crowd:
    """Clients of one server, each of which asks once; `outcomes` waits for all of them."""

    def __init__(self, port: int, asks: Sequence[Ask]) -> None:
        self._thread = ThreadPoolExecutor(1)
        self.tokens = 0  #: that have come so far
        self.ended = 0  #: requests
        self.accepted = 0  #: requests whose answer has a head, that all is well or that it is not
        self._results: Future[list[Got]] = self._thread.submit(self._run, port, asks)

    def outcomes(self) -> list[Got]:
        """What each of them got."""
        results = self._results.result()
        self._thread.shutdown()
        return results

    def _run(self, port: int, asks: Sequence[Ask]) -> list[Got]:
        async def all_of_them() -> list[Got]:
            return await asyncio.gather(*(self._ask(port, ask) for ask in asks))

        return asyncio.run(all_of_them())

    async def _ask(self, port: int, ask: Ask) -> Got:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await self._asked(port, ask)
        except TimeoutError:
            return Got(HUNG)
        finally:
            self.ended += 1

    async def _asked(self, port: int, ask: Ask) -> Got:
        """By hand, so that nothing is tried again and nothing is waited for in secret."""
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError as error:
            return Got(CUT, said=str(error))
        tokens, ends = 0, 0
        try:
            body = ask.body()
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nHost: server\r\nConnection: close\r\n"
                b"Content-Type: application/json\r\n"
                b"Content-Length: %d\r\n\r\n" % len(body) + body
            )
            await writer.drain()
            status = int((await reader.readline()).split()[1])
            self.accepted += 1
            if status != 200:
                return Got(REFUSED, said=f"{status} {(await reader.read()).decode()}")
            async for line in reader:
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[6:])
                if "error" in event:  # vLLM looks at some things once the stream has begun
                    error = event["error"]
                    return Got(REFUSED, tokens, f"{error['code']} {error['message']}")
                for choice in event["choices"]:
                    tokens += 1
                    self.tokens += 1
                    ends += choice["finish_reason"] is not None
                if (usage := event.get("usage")) is not None:
                    tokens = usage["completion_tokens"]
                if ask.leaves_after is not None and tokens >= ask.leaves_after:
                    return Got(CUT, tokens, "the client left")
        except (OSError, asyncio.IncompleteReadError, IndexError, ValueError) as error:
            return Got(CUT, tokens, repr(error))
        finally:
            if ask.leaves_after is not None:  # as a client that crashes
                writer.transport.abort()
            writer.close()
        assert ends <= 1, "an answer ended twice"
        return Got(WHOLE, tokens) if ends else Got(CUT, tokens)


class Live:
    """`lengthwise serve --emulate`, up, with a settings file and all it writes in one folder."""

    def __init__(self, process: Any, port: int, folder: Path) -> None:
        self.process = process
        self.port = port
        self.folder = folder
        self.settings = folder / "state" / "settings.json"

    def wait_for(self, what: Callable[[], object]) -> None:
        """Wait until something is so; the server has to live meanwhile."""
        deadline = time.monotonic() + PATIENCE_S
        while not what():
            assert self.process.poll() is None, self.said()[-3000:]
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.05)

    def send(self, asks: Sequence[Ask]) -> Crowd:
        """A crowd whose requests are on their way."""
        return Crowd(self.port, asks)

    def busy(self, asks: Sequence[Ask]) -> Crowd:
        """A crowd some of whose answers have begun to come, and all of whom the server knows."""
        crowd = self.send(asks)
        self.wait_for(lambda: crowd.tokens > 5 and crowd.accepted == len(asks))
        return crowd

    def status(self) -> dict[str, Any]:
        """What the scheduler says of itself."""
        value: dict[str, Any] = json.loads(status_path(self.settings).read_text())
        return value

    def counter(self, name: str) -> int:
        """A total of the scheduler's."""
        return int(self.status()["counters"][name])

    def counter_now(self, name: str) -> int:
        """The same from a status that is written from now on: at least one every few seconds."""
        now = time.time()
        self.wait_for(lambda: self.status()["time"] >= now)
        return self.counter(name)

    def choose(self, **settings: object) -> None:
        """Give it other settings, and wait until they are in force."""
        digest = parse_settings(GOOD | settings).write(self.settings)
        self.wait_for(
            lambda: (self.status()["state"], self.status()["settings_sha256"]) == ("active", digest)
        )

    def children(self, name: str) -> list[Any]:
        """The server's processes that live and whose title or command line has a word in it."""
        found = []
        for child in children_of(self.process):
            with contextlib.suppress(psutil.NoSuchProcess):  # it ended meanwhile
                if name in child.name() or name in " ".join(child.cmdline()):
                    found.append(child)
        return found

    def child(self, name: str) -> Any:
        """The one that there is."""
        (found,) = self.children(name)
        return found

    @property
    def engine(self) -> Any:
        """The process of the engine core."""
        return self.child("EngineCore")

    @contextlib.contextmanager
    def full_disk(self) -> Iterator[None]:
        """The engine cannot write to any file of more than a few bytes."""
        pid = self.engine.pid
        before = resource.prlimit(pid, resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
        try:
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_FSIZE, before)

    def said(self) -> str:
        """All that it has printed."""
        return (self.folder / "err").read_text()

    def assert_serves(self, count: int = 8) -> None:
        """It goes on serving, and has nothing left of what came before."""
        assert_all(self.send([Ask()] * count).outcomes(), WHOLE, tokens=20)
        self.wait_for(lambda: self.status()["time"] > time.time() - 60)
        gauge = "vllm:num_requests_running"
        self.wait_for(lambda: self.page("/metrics").split(gauge + "{")[1].split()[1] == "0.0")

    def page(self, path: str) -> str:
        """A page of its own."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=60) as connection:
            connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            parts = []
            while data := connection.recv(1 << 16):
                parts.append(data)
        return b"".join(parts).decode()


def assert_all(outcomes: Sequence[Got], *allowed: str, tokens: int | None = None) -> None:
    """Each ended in one of these ways, the whole ones with so many tokens."""
    ways = collections.Counter(got.how for got in outcomes)
    assert set(ways) <= set(allowed), (ways, [got.said for got in outcomes if got.said][:3])
    if tokens is not None:
        assert {got.tokens for got in outcomes if got.how == WHOLE} <= {tokens}


@contextlib.contextmanager
def live_server(
    folder: Path, *flags: str, slots: int = 64, settings: dict[str, object] | None = None
) -> Iterator[Live]:
    """Start one, wait until it is up, and see to it that nothing of it is left in the end."""
    port, state = free_port(), folder / "state"
    state.mkdir()
    file = state / "settings.json"
    parse_settings(GOOD | (settings or {})).write(file)
    arguments = ["serve", "--emulate", PRESET, "--settings", str(file), "--port", str(port)]
    with started(folder, *arguments, "--max-num-seqs", str(slots), *flags) as process:
        live = Live(process, port, folder)
        wait_for(lambda: "ready at" in live.said(), process, folder)
        children = children_of(process)
        yield live
    assert_gone(children)
