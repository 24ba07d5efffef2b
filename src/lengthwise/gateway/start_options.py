"""What is decided when a gateway starts; all else is in the settings, which are watched."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lengthwise.gateway.limits import Limits
from lengthwise.gateway.relay import Patience
from lengthwise.gateway.waiting import FIRST_LIMIT


@dataclass(frozen=True)
class Options:
    """What is decided when a gateway starts.

    Attributes:
        upstreams: addresses of the servers behind.
        max_inflight: answers that each may have under way; None: by what it says of its own queue.
        limits: of what waits.
        patience: with upstreams and clients.
        priority_header: the header whose number is a request's class; None: no header is believed.
        tenant_header: the header that says whose a request is; None: its API key does.
        upstream_ssl: what is trusted of https upstreams, as aiohttp takes it.
    """

    upstreams: list[str]
    max_inflight: int | None
    limits: Limits = field(default_factory=Limits)
    patience: Patience = field(default_factory=Patience)
    priority_header: str | None = None
    tenant_header: str | None = None
    upstream_ssl: Any = True

    @property
    def slots(self) -> int:
        """Answers that may be under way in all, to begin with."""
        return len(self.upstreams) * (self.max_inflight or FIRST_LIMIT)
