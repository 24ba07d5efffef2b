"""What may wait: requests and bytes, of everybody and of one API key."""

from __future__ import annotations

import hashlib
import math
import secrets
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from lengthwise.errors import LengthwiseError

_KEYS: Final = ("Authorization", "X-Api-Key", "Api-Key")
_MOST_RETRY_S: Final = 60
_RECENT: Final = 64  #: requests that went, from which the pace is known


class RefusedError(LengthwiseError):
    """A request that is not served, and why.

    Attributes:
        status: of the answer.
        outcome: what it is counted as.
        retry_after_s: when to come again; None: it is of no use.
    """

    def __init__(
        self, status: int, reason: str, outcome: str, retry_after_s: int | None = None
    ) -> None:
        super().__init__(reason)
        self.status, self.outcome, self.retry_after_s = status, outcome, retry_after_s


@dataclass(frozen=True)
class Limits:
    """The bounds of a queue.

    Attributes:
        requests: that wait.
        bytes: of bodies that are kept: until their request was sent, or given up.
        per_key: requests of one API key that wait; None for no such bound. Requests without a key
            have one in common.
        body_bytes: of one request.
        wait_s: that a request may wait.
    """

    requests: int = 10_000
    bytes: int = 256_000_000
    per_key: int | None = None
    body_bytes: int = 32_000_000
    wait_s: float = 120.0


class Keys:
    """Tells API keys apart without keeping one: a keyed hash, of which no two processes agree."""

    def __init__(self) -> None:
        self._secret = secrets.token_bytes(32)

    def digest(self, headers: Mapping[str, str]) -> bytes:
        """What stands for the key that a request carries."""
        given = "\n".join(headers.get(name, "") for name in _KEYS)
        # A header may hold bytes that are no text, which aiohttp keeps as surrogates.
        data = given.encode("utf-8", "surrogateescape")
        return hashlib.blake2b(data, digest_size=16, key=self._secret).digest()


class Room:
    """The room for requests that wait; all of it is taken, or refused, before anything is kept."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = 0
        self.bytes = 0
        self._by_key: Counter[bytes] = Counter()
        self._went: deque[float] = deque(maxlen=_RECENT)

    def enter(self, key: bytes) -> None:
        """Take a place.

        Raises:
            RefusedError: there is none.
        """
        if self.requests >= self.limits.requests:
            raise self._full(f"{self.requests:,} requests wait already")
        if self.limits.per_key is not None and self._by_key[key] >= self.limits.per_key:
            raise self._full(f"{self._by_key[key]:,} requests of this API key wait already")
        self.enter_again(key)

    def enter_again(self, key: bytes) -> None:
        """Take a place back that was left too soon; it is never refused."""
        self.requests += 1
        self._by_key[key] += 1

    def leave(self, key: bytes) -> None:
        """Give the place back."""
        self.requests -= 1
        self._by_key[key] -= 1
        if not self._by_key[key]:
            del self._by_key[key]

    def keep(self, size: int, so_far: int) -> None:
        """Take room for bytes of a body of which `so_far` are kept already.

        Raises:
            RefusedError: there is none, or the body is too large for any.
        """
        if so_far + size > self.limits.body_bytes:
            most = self.limits.body_bytes
            raise RefusedError(413, f"the body has more than {most:,} bytes", "too_large")
        if self.bytes + size > self.limits.bytes:
            raise self._full(f"bodies of {self.bytes:,} bytes are kept already")
        self.bytes += size

    def let_go(self, size: int) -> None:
        """Give room for bytes back."""
        self.bytes -= size

    def went(self, now_s: float) -> None:
        """Note that a request went to an upstream."""
        self._went.append(now_s)

    def retry_after_s(self) -> int:
        """When all that wait now will have gone, at the pace of those that went last."""
        if len(self._went) < 2 or self._went[-1] <= self._went[0]:
            return 1
        pace = (len(self._went) - 1) / (self._went[-1] - self._went[0])
        return min(max(math.ceil(self.requests / pace), 1), _MOST_RETRY_S)

    def _full(self, reason: str) -> RefusedError:
        return RefusedError(429, f"{reason}: come again", "full", self.retry_after_s())


class Place:
    """What one request holds of the room; given back once, whatever happens.

    Attributes:
        key: the digest of its API key.
        body: as long as it is kept.
    """

    def __init__(self, room: Room, key: bytes) -> None:
        """Take a place.

        Raises:
            RefusedError: there is none.
        """
        room.enter(key)
        self.key, self.body = key, b""
        self._room = room
        self._waits, self._size = True, 0

    def keep(self, size: int) -> None:
        """Take room for more bytes of its body; see `Room.keep`."""
        self._room.keep(size, self._size)
        self._size += size

    def let_go(self) -> None:
        """Its body is not kept any more."""
        self.body = b""
        self._room.let_go(self._size)
        self._size = 0

    def leave(self) -> None:
        """It does not wait any more."""
        if self._waits:
            self._waits = False
            self._room.leave(self.key)

    def enter_again(self) -> None:
        """It waits again."""
        self._waits = True
        self._room.enter_again(self.key)
