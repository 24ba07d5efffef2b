"""The scheduler's counters for Prometheus, on a port of their own.

The scheduler lives in the engine's process, which the API server's `/metrics` does not reach.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator
from typing import Any, Final

from lengthwise.errors import InputError, one_line
from lengthwise.telemetry.engine_file import EngineState
from lengthwise.telemetry.families import families

logger = logging.getLogger("vllm.lengthwise")

_TRIED: Final = 64  # ports, from the one that was asked for
_LAST_PORT: Final = 65535


class MetricsServer:
    """Serves counters and gauges until it is closed.

    Args:
        host: the address to listen at; None for all of them.
        port: the port to listen at; where another program has it, the next free one.
        state: the numbers of now; the engine's own number is a label of every value.

    Attributes:
        port: the one that it listens at.

    Raises:
        InputError: neither the port nor one of those behind it can be opened.
    """

    def __init__(
        self,
        host: str | None,
        port: int,
        state: Callable[[], EngineState],
    ) -> None:
        from prometheus_client import CollectorRegistry

        self.key = (host, port)
        registry = CollectorRegistry()
        registry.register(_Collector(state))
        self.port, self._server, self._thread = _listen(host, port, registry)
        if self.port != port:
            logger.warning(
                "Lengthwise: metrics_port %d is in use, metrics are on port %d", port, self.port
            )

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Collector:
    """Reads all values anew each time that it is asked."""

    def __init__(self, state: Callable[[], EngineState]) -> None:
        self._state = state

    def collect(self) -> Iterator[Any]:
        """The values as Prometheus's families."""
        return families([self._state()], ["engine"])


def _listen(host: str | None, port: int, registry: Any) -> tuple[int, Any, Any]:
    """Listen at the first of some ports that is free: the port, the server and its thread."""
    from prometheus_client import start_http_server

    for candidate in range(port, min(port + _TRIED, _LAST_PORT + 1)):
        try:
            return candidate, *start_http_server(candidate, host or "0.0.0.0", registry)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise InputError(
                    f"metrics_port {candidate} cannot be opened at {host or 'any address'}: "
                    f"{one_line(error.strerror or error)}; choose another"
                ) from error
    raise InputError(
        f"metrics_port {port} is in use, and so are the ports behind it: choose another"
    )
