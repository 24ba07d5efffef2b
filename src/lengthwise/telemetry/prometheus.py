"""The scheduler's numbers for Prometheus: as its families of metrics, and on a port of their own.

The scheduler lives in the engine's process, which the API server's `/metrics` does not reach: see
`metrics_page` for how they get there.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from lengthwise.counters import BOUNDS, HELP
from lengthwise.errors import InputError, one_line
from lengthwise.telemetry.engine_file import EngineState

logger = logging.getLogger("vllm.lengthwise")

_QUEUE: Final = "lengthwise_queue_time_seconds"
_SAYS: Final = "Time from arrival to the first step, by priority class and predicted output tokens"
_TRIED: Final = 64  # ports, from the one that was asked for
_LAST_PORT: Final = 65535


def families(engines: Sequence[EngineState], names: Sequence[str]) -> Iterator[Any]:
    """All counters, gauges and histograms of some engines.

    Args:
        engines: whose numbers.
        names: the labels that tell them apart: fields of `EngineState`.
    """
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    labelled = [([str(getattr(each, name)) for name in names], each) for each in engines]
    for name, says in HELP.items():
        counter = CounterMetricFamily(f"lengthwise_{name}", says, labels=names)
        for labels, each in labelled:
            counter.add_metric(labels, each.counters.get(name, 0))
        yield counter
    for name in sorted({name for each in engines for name in each.gauges}):
        gauge = GaugeMetricFamily(f"lengthwise_{name}", name.replace("_", " "), labels=names)
        for labels, each in labelled:
            if name in each.gauges:
                gauge.add_metric(labels, each.gauges[name])
        yield gauge
    policy = GaugeMetricFamily(
        "lengthwise_policy_info", "The policy in force", labels=[*names, "policy"]
    )
    queue = HistogramMetricFamily(_QUEUE, _SAYS, labels=[*names, "class", "predicted_tokens"])
    for labels, each in labelled:
        policy.add_metric([*labels, each.policy], 1)
        for one in each.queue_times:
            queue.add_metric(
                [*labels, one["class"], one["predicted_tokens"]], _buckets(one), one["sum"]
            )
    yield policy
    yield queue


def _buckets(one: Mapping[str, Any]) -> list[tuple[str, float]]:
    """How many there were up to each bound."""
    bounds = [*map(str, BOUNDS), "+Inf"]
    return list(zip(bounds, accumulate(one["counts"]), strict=True))


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
