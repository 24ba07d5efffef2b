"""The scheduler's numbers as Prometheus's families of metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Final

from lengthwise.counters import HELP
from lengthwise.telemetry.engine_file import EngineState
from lengthwise.telemetry.queue_times import BOUNDS

_QUEUE: Final = "lengthwise_queue_time_seconds"
_SAYS: Final = "Time from arrival to the first step, by priority class and predicted output tokens"


def families(engines: Sequence[EngineState], names: Sequence[str]) -> Iterator[Any]:
    """All counters, gauges and histograms of some engines.

    Args:
        engines: whose numbers.
        names: the labels that tell them apart: fields of `EngineState`.
    """
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )

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
