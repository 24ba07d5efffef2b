"""What a running vLLM server tells of its queue, from the Prometheus metrics at /metrics.

Names as in vLLM V1 (vllm/v1/metrics/loggers.py). Gauges are of the moment; counters and histograms
count from the start of the server. Several engines behind one address are added up.
"""

from __future__ import annotations

import http.client
import math
import time
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from lengthwise.errors import InputError

_TIMEOUT_S: Final = 10.0
_EVERY_S: Final = 1.0  # between two looks
_RUNNING: Final = "vllm:num_requests_running"
_WAITING: Final = "vllm:num_requests_waiting"
_KV_USE: Final = "vllm:kv_cache_usage_perc"
_PREEMPTIONS: Final = "vllm:num_preemptions_total"
_QUEUE: Final = "vllm:request_queue_time_seconds"
_LATENCY: Final = "vllm:e2e_request_latency_seconds"
_ANSWERS: Final = "vllm:request_generation_tokens"


@dataclass(frozen=True)
class Histogram:
    """What a Prometheus histogram says of the values it was shown.

    Attributes:
        count: how many there were.
        total: their sum.
        buckets: how many were at most each bound, by bound, ascending; the last bound is inf.
    """

    count: float
    total: float
    buckets: Mapping[float, float]

    @property
    def mean(self) -> float:
        """NaN without values."""
        return self.total / self.count if self.count else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation over mean, roughly: values are put in the middle of their bucket.

        A middle is the mean of its two bounds; what is beyond the last finite bound is put there.
        """
        bounds = sorted(self.buckets)
        lower, below, square, linear = 0.0, 0.0, 0.0, 0.0
        for bound in bounds:
            inside = self.buckets[bound] - below
            middle = 0.5 * (lower + bound) if math.isfinite(bound) else lower
            linear += inside * middle
            square += inside * middle * middle
            lower, below = bound, self.buckets[bound]
        if not self.count or linear == 0.0:
            return math.nan
        mean = linear / self.count
        return math.sqrt(max(square / self.count - mean * mean, 0.0)) / mean


@dataclass(frozen=True)
class ServerSample:
    """One look at a server."""

    running: float  # requests in the batch
    waiting: float  # requests in the queue
    kv_use: float  # share of KV blocks in use, of the fullest engine; NaN where it is not said
    preemptions: float  # since the server started
    queue_s: Histogram  # of finished requests since then, as are the next two
    latency_s: Histogram
    answer_tokens: Histogram


def watch_server(
    url: str,
    seconds: float,
    progress: Callable[[int], None] = lambda samples: None,
) -> list[ServerSample]:
    """Look at a server once a second for some seconds, at least once.

    Args:
        url: of its metrics, such as http://localhost:8000/metrics.
        seconds: for how long.
        progress: called with the number of looks taken.

    Raises:
        InputError: the server does not answer, or not with the metrics of vLLM; or the time has no
            end.
    """
    if not math.isfinite(seconds):
        raise InputError(f"--seconds {seconds:g}: give a number of seconds, such as 10")
    samples: list[ServerSample] = []
    for _ in range(round(seconds / _EVERY_S) + 1):
        if samples:
            time.sleep(_EVERY_S)
        samples.append(parse_metrics(_fetch(url), url))
        progress(len(samples))
    return samples


def parse_metrics(text: str, source: str) -> ServerSample:
    """Read a page of metrics.

    Raises:
        InputError: it is no such page, or lacks the metrics of vLLM.
    """
    values: dict[str, list[float]] = defaultdict(list)
    buckets: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    try:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                if sample.name.endswith("_bucket"):
                    name = sample.name.removesuffix("_bucket")
                    buckets[name][float(sample.labels["le"])] += sample.value
                else:
                    values[sample.name].append(sample.value)
    except (ValueError, KeyError, IndexError) as error:
        raise InputError(
            f"{source} does not answer with Prometheus metrics ({error}): give the address of a "
            "vLLM server's metrics, such as http://localhost:8000/metrics"
        ) from None
    for name in (_RUNNING, _WAITING, _QUEUE + "_count"):
        if name not in values:
            raise InputError(
                f"{source} has no {name.removesuffix('_count')}, so it is no vLLM server's page of "
                "metrics: give one such as http://localhost:8000/metrics"
            )

    def histogram(name: str) -> Histogram:
        bounds = dict(sorted(buckets[name].items()))
        return Histogram(sum(values[name + "_count"]), sum(values[name + "_sum"]), bounds)

    return ServerSample(
        running=sum(values[_RUNNING]),
        waiting=sum(values[_WAITING]),
        kv_use=max(values[_KV_USE], default=math.nan),
        preemptions=sum(values[_PREEMPTIONS]),
        queue_s=histogram(_QUEUE),
        latency_s=histogram(_LATENCY),
        answer_tokens=histogram(_ANSWERS),
    )


def _fetch(url: str) -> str:
    if urlsplit(url).scheme not in ("http", "https"):
        raise InputError(f"--url {url}: give an address such as http://localhost:8000/metrics")
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_S) as answer:
            body: bytes = answer.read()
    except urllib.error.HTTPError as error:
        raise InputError(
            f"{url} answers {error.code} {error.reason}: vLLM's metrics are at /metrics, as in "
            "http://localhost:8000/metrics"
        ) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error
        raise InputError(
            f"cannot reach {url}: {reason}; is the server running, and is this its address?"
        ) from None
    return body.decode("utf-8", "replace")
