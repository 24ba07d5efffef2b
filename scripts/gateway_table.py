"""What `lengthwise gateway` costs and keeps of the gain, as one Markdown table."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from scripts.columns import Row, spread, table


def gateway_table(kept: Row) -> list[str]:
    """One row a question. Runs of one part with several seeds are one row, with their spread."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for row in kept["rows"]:
        for part in row.keys() & {"streams", "latency", "memory", "gain"}:
            parts.setdefault(part, []).append(row[part])
    lines = [["streams open at once, of those asked for", _streams(parts["streams"])]]
    for quantile in ("p50", "p99"):
        added = [each[f"added_{quantile}_ms"] for each in parts["latency"]]
        rate = parts["latency"][0]["rate"]
        what = f"added to the first byte at {rate:.0f} requests/s, {quantile}"
        lines.append([what, spread(added, ".1f", " ms")])
    cost = [each["gateway_us_per_request"] / 1000 for each in parts["latency"]]
    lines.append(["processor time of a request with 8 events", spread(cost, ".2f", " ms")])
    lines += [list(each) for each in _memory(parts["memory"])]
    lines += [list(each) for each in _gain(parts["gain"])]
    return table(("question", "measured"), lines)


def _streams(runs: list[dict[str, Any]]) -> str:
    return ", ".join(f"{each['open_at_once']:,} of {each['asked']:,}" for each in runs)


def _memory(runs: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for each in runs:
        what = f"memory that grew in the second half of {each['minutes']:.0f} minutes"
        share = f"of {each['megabytes'][-1]:.0f} MB, {each['requests']:,} requests"
        yield what, f"{each['growth_megabytes_second_half']:.1f} MB {share}"


def _gain(runs: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    for load in ("burst", "1.2"):
        shares = spread([each[load]["share"] for each in runs], ".0%")
        inside = spread([each[load]["inside_gain"] for each in runs], ".0%")
        name = "a burst" if load == "burst" else f"{load} × capacity"
        yield (
            f"of the gain in mean latency that the scheduler inside has, {name}",
            f"{shares} of {inside}",
        )
