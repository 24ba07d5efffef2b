"""What `bench/recorded_steps.py` says, as a Markdown table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from scripts.columns import Row, table

_FIGURES = ("e2e_mean", "e2e_p99", "ttft_mean", "ttft_p99")


def recorded_table(kept: Row) -> list[str]:
    """Errors of virtual time by load, with recorded and with fitted durations."""
    lines = [
        [
            f"`{row['load']}`",
            kind,
            *(spread(row[f"{kind}_{name}"]) for name in _FIGURES),
        ]
        for row in kept["rows"]
        for kind in ("recorded", "fitted", "run")
    ]
    first = kept["rows"][0]
    largest = max(row["recorded_gap_s"] for row in kept["rows"])
    return [
        *table(("load", "durations", "E2E mean", "p99", "TTFT mean", "p99"), lines),
        "",
        f"Medians of {first['runs']} runs in %, the lowest and the highest in brackets; by the "
        f"{first['clock']} clock, at a load average of {first['load_average']:.0f}. With recorded "
        f"durations, no token was further than {largest:.0e} s from where it really was.",
    ]


def spread(value: Mapping[str, Any]) -> str:
    """A median with its range, in %."""
    median, low, high = (100 * value[name] for name in ("median", "low", "high"))
    return f"{median:+.1f} ({low:+.1f} to {high:+.1f})"
