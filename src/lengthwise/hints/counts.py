"""What the service and the middleware count, for Prometheus."""

from __future__ import annotations

from functools import cache
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

#: seconds: the bar for a single prompt is 5 ms
_BUCKETS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

#: what became of a request that passed the middleware, label `outcome`
OUTCOMES: Final = {
    "written": "a prediction was written into it",
    "declared": "it named a length itself, which was written where it was missing",
    "kept": "all that would be written was there already, and agreed",
    "contradictory": "its own hints name different lengths: they were kept",
    "unreadable": "its body is no request that a length can be predicted of: passed on without one",
    "too_large": "its body is larger than is read: passed on unchanged",
    "late": "the prediction took too long: passed on unchanged",
    "failed": "the predictor or its server failed: passed on unchanged",
}


class ServerMetrics:
    """Of `lengthwise predict-server`, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "lengthwise_predict_requests",
            "Requests to /v1/predict by the status of their answer",
            ["status"],
            registry=self.registry,
        )
        self.prompts = Counter(
            "lengthwise_predict_prompts", "Prompts predicted", registry=self.registry
        )
        self.seconds = Histogram(
            "lengthwise_predict_seconds",
            "From a request's body to its answer, of those that were predicted",
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.waiting = Gauge(
            "lengthwise_predict_waiting_prompts",
            "Prompts asked for and not yet answered",
            registry=self.registry,
        )

    def answered(self, prompts: int, seconds: float) -> None:
        """One request whose prompts were all predicted."""
        self.prompts.inc(prompts)
        self.seconds.observe(seconds)


@cache
def hint_requests() -> Counter:
    """The middleware's counter, in the registry of the process that it is in.

    That is the one that vLLM's, LiteLLM's and most gateways' own `/metrics` serves.
    """
    counter = Counter(
        "lengthwise_hint_requests",
        "Requests that passed the middleware by what became of their hints",
        ["outcome"],
        registry=REGISTRY,
    )
    for outcome in OUTCOMES:
        counter.labels(outcome)  # there from the start, so that a first failure is a rise from 0
    return counter
