"""Latencies of many requests in figures, for measured rounds and simulated ones alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError

PERCENTILES: Final = (50, 90, 95, 99)


def latency_figures(name: str, seconds: NDArray[np.floating]) -> dict[str, float]:
    """What `vllm bench serve` says of one kind of latency, under its keys, in ms.

    Args:
        name: of the latency, such as `ttft`.
        seconds: one for each request; those that are not finite are left out.

    Returns:
        mean_X_ms, median_X_ms, std_X_ms, p50_X_ms, p90_X_ms, p95_X_ms, p99_X_ms and max_X_ms, NaN
        where there is no latency. The longest `max_waiting_time` is `max_waiting_time_ms`.
    """
    milliseconds = seconds[np.isfinite(seconds)].astype(np.float64) * 1000
    if not len(milliseconds):
        milliseconds = np.array([np.nan])
    percentiles = np.percentile(milliseconds, PERCENTILES)
    return {
        f"mean_{name}_ms": float(milliseconds.mean()),
        f"median_{name}_ms": float(percentiles[PERCENTILES.index(50)]),
        f"std_{name}_ms": float(milliseconds.std()),
        **{
            f"p{percent}_{name}_ms": float(value)
            for percent, value in zip(PERCENTILES, percentiles, strict=True)
        },
        f"max_{name.removeprefix('max_')}_ms": float(milliseconds.max()),
    }


def parse_objectives(pairs: Iterable[str]) -> dict[str, float]:
    """Read service-level objectives such as `ttft:500 tpot:50 e2el:2000`, in ms.

    Args:
        pairs: NAME:MILLISECONDS each; a string may hold several, parted by spaces or commas.

    Raises:
        InputError: an unknown name, or a value that is no number of milliseconds ≥ 0.
    """
    objectives: dict[str, float] = {}
    for pair in " ".join(pairs).replace(",", " ").split():
        name, _, value = pair.partition(":")
        try:
            milliseconds = float(value)
        except ValueError:
            milliseconds = math.nan
        if name not in ("ttft", "tpot", "e2el") or not milliseconds >= 0:
            raise InputError(
                f"{pair!r} is no service-level objective: give ttft:MS, tpot:MS or e2el:MS, "
                "such as ttft:500"
            )
        objectives[name] = milliseconds
    return objectives


def good_requests(
    latencies: Mapping[str, NDArray[np.float64]], objectives: Mapping[str, float]
) -> int:
    """How many requests met every objective; an answer of one token meets any TPOT, as in vLLM.

    Args:
        latencies: `ttft`, `tpot` and `e2el` of each request, in s.
        objectives: see `parse_objectives`.
    """
    good = np.ones(len(latencies["e2el"]), np.bool_)
    for name, limit in objectives.items():
        good &= np.nan_to_num(latencies[name]) <= limit / 1000
    return int(good.sum())
