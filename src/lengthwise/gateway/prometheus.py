"""What a gateway counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily

from lengthwise.counters import HELP, Counters

#: what became of a request, label `outcome`
OUTCOMES: Final = {
    "answered": "the upstream's answer was passed on whole, an error of its own included",
    "full": "refused with 429: too many requests or bytes wait already, or of this API key",
    "timed_out": "refused with 503: it waited too long without a turn",
    "unreachable": "refused with 503: no upstream can be reached",
    "shut_down": "refused with 503: the gateway is shutting down",
    "too_large": "refused with 413: its body is larger than is taken",
    "incomplete": "refused with 400 or 408: its body broke off, or came too slowly",
    "gone": "its client went away, waiting or while it was answered; the upstream was told",
    "slow": "cut off: its client did not take what was sent to it",
    "failed": "the upstream broke off before its answer began: 502",
    "silent": "the upstream said nothing for too long before its answer began: 504",
    "broken": "the upstream broke off, or fell silent, in the middle of its answer",
    "cut": "begun, and cut off because the time to shut down was over",
    "defect": "a fault of the gateway itself: 500",
}
#: of the scheduler's counters, those that a gateway counts as well
_SCHEDULERS: Final = (
    "admissions",
    "finished",
    "predictions",
    "fallbacks",
    "unpredicted",
    "overtakes",
    "floor_falls",
    "floor_rises",
    "logged",
    "log_lost",
    "switched_off",
    "settings_changes",
    "settings_refused",
)
_WAIT_BUCKETS: Final = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class GatewayMetrics:
    """What `lengthwise gateway` counts, in a registry of its own.

    Args:
        scheduler: what the queue and the predictions count.
    """

    def __init__(self, scheduler: Counters) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "lengthwise_gateway_requests",
            "Requests to generate by what became of them",
            ["outcome"],
            registry=registry,
        )
        for outcome in OUTCOMES:
            self.requests.labels(outcome)  # there from the start, so that the first is a rise
        self.passed = Counter(
            "lengthwise_gateway_passed",
            "Other requests, which are passed on without a queue, by the status of their answer",
            ["status"],
            registry=registry,
        )
        self.sent_again = Counter(
            "lengthwise_gateway_sent_again",
            "Requests that an upstream did not take, and that waited for another turn",
            registry=registry,
        )
        self.wait_s = Histogram(
            "lengthwise_gateway_wait_seconds",
            "From a request's body to its turn",
            buckets=_WAIT_BUCKETS,
            registry=registry,
        )
        self.waiting = self._gauge("waiting", "Requests that wait")
        self.waiting_bytes = self._gauge("kept_bytes", "Bytes of bodies that are kept")
        self.in_flight = self._gauge("in_flight", "Answers under way", "upstream")
        self.limit = self._gauge("limit", "Answers that may be under way", "upstream")
        self.reachable = self._gauge("reachable", "Whether it takes connections", "upstream")
        registry.register(_Scheduler(scheduler))

    def _gauge(self, name: str, says: str, *labels: str) -> Gauge:
        return Gauge(f"lengthwise_gateway_{name}", says, labels, registry=self._registry)

    def collect(self) -> list[Any]:
        """All families, with their present values."""
        return list(self._registry.collect())

    def page(self) -> bytes:
        """All of it as Prometheus reads it."""
        page: bytes = generate_latest(self._registry)
        return page


class _Scheduler:
    """The counters that a gateway shares with the scheduler, under the same names."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters

    def collect(self) -> Iterator[Any]:
        """As Prometheus's client asks for them."""
        for name in _SCHEDULERS:
            yield CounterMetricFamily(
                f"lengthwise_{name}", HELP[name], value=getattr(self._counters, name)
            )
