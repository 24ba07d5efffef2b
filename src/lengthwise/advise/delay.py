"""The time between client and engine, from what a measured round's steps do not explain."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lengthwise.advise.measured import Floats, MeasuredRound
from lengthwise.measure.round_metrics import request_metrics


def fit_delay(rounds: Sequence[MeasuredRound]) -> float:
    """Seconds of a first token's latency that the engine's steps do not explain; at least 0.

    What they do explain: the wait for the step in progress when the request came (half of it), the
    wait in the queue, and the step that computed the first token. Their rest is on the way between
    client and engine.
    """
    rests = [_unexplained(each) for each in rounds]
    known = [rest[np.isfinite(rest)] for rest in rests]
    found = np.concatenate(known) if known else np.empty(0)
    return max(float(np.median(found)), 0.0) if len(found) else 0.0


def _unexplained(measured: MeasuredRound) -> Floats:
    """Of each completed request's time to first token, what the engine's steps do not explain."""
    metrics = request_metrics(measured.records)
    arrival_s = measured.arrival_s[measured.records.completed]
    starts, durations = measured.steps["t"], measured.steps["duration_s"]
    prefills = durations[measured.timed & (measured.work[:, 0] > 0)]
    if len(prefills) == 0:
        return np.full(len(arrival_s), np.nan)
    if np.isfinite(arrival_s).any():
        # Requests join the queue between two steps: their wait for the first of them is no part of
        # what was recorded as the queue. Requests without a time of arrival give NaN.
        before = durations[np.maximum(np.searchsorted(starts, arrival_s) - 1, 0)]
        admitted_s = arrival_s + metrics.queue + 1e-6  # a hair later: sums of seconds are rounded
        step = np.searchsorted(starts, admitted_s) - 1
        own = durations[step]
        if measured.engine.lag:
            own = own + durations[np.minimum(step + 1, len(durations) - 1)]
        own = np.where(np.isfinite(arrival_s), own, np.nan)
    else:
        # Older records do not say when requests arrived, hence not in which step they began.
        before = np.full(len(arrival_s), np.nanmean(durations))
        own = np.full(len(arrival_s), np.median(prefills))
    rest: Floats = metrics.ttft - metrics.queue - own - 0.5 * np.nan_to_num(before)
    return rest
