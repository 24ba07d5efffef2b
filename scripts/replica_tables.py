"""Tables of what routing over several replicas is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from scripts.columns import Row, spread, table

_SHOWN: Final = (
    "round-robin",
    "least-outstanding",
    "least-predicted-work",
    "predicted-wait",
    "predicted-wait-of-two",
)


def replicas_table(kept: Row) -> list[str]:
    """One row for each number of replicas, kind of replica and age of news; over all seeds."""
    lines = []
    cases = dict.fromkeys(
        (row["replicas"], row["policy"], row["routers"], row["stale_s"]) for row in kept["rows"]
    )
    for case in cases:
        rows = [
            row
            for row in kept["rows"]
            if (row["replicas"], row["policy"], row["routers"], row["stale_s"]) == case
        ]
        replicas, policy, routers, stale_s = case
        news = "one knows all" if routers == 1 else f"{routers}, news of {stale_s:g} s"
        lines.append(
            [
                str(replicas),
                policy,
                news,
                spread(_of(rows, "power-of-two", "mean_e2el_s"), ".2f", " s"),
                *(spread(_of(rows, router, "over_power_of_two"), ".2f") for router in _SHOWN),
            ]
        )
    heads = ("replicas", "they serve by", "routers", "power of two", *map(_code, _SHOWN))
    decides = {
        row["replicas"]: row["decide_us"] for row in kept["rows"] if row["decide_us"] is not None
    }
    took = ", ".join(f"{count}: {micros:.0f} µs" for count, micros in decides.items())
    return [*table(heads, lines), "", f"A decision among so many full replicas takes: {took}."]


def ray_cluster_table(kept: Row) -> list[str]:
    """One row for each kind of replica; over all seeds."""
    lines = []
    for policy in dict.fromkeys(row["policy"] for row in kept["rows"]):
        rows = [row for row in kept["rows"] if row["policy"] == policy]
        seconds = (
            spread(_of(rows, router, "mean_e2el_s"), ".2f", " s")
            for router in ("power-of-two", "predicted-wait")
        )
        share = spread(_of(rows, "predicted-wait", "over_power_of_two"), ".2f")
        lines.append([policy, *seconds, share])
    heads = ("they serve by", "mean latency, power of two", "predicted wait", "over it")
    return table(heads, lines)


def _of(rows: list[dict[str, Any]], router: str, name: str) -> list[float]:
    return [row[name] for row in rows if row["router"] == router]


def _code(name: str) -> str:
    return f"`{name}`"


REPLICA_TABLES: Final[Mapping[str, Callable[[Row], list[str]]]] = {
    "replicas": replicas_table,
    "ray-cluster": ray_cluster_table,
}
