"""What was measured of serving as Markdown tables: deadlines, tenants, replicas, the gateway."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from scripts.columns import Row, spread, table

_SHOWN: Final = (
    "round-robin",
    "least-outstanding",
    "least-predicted-work",
    "predicted-wait",
    "predicted-wait-of-two",
)


def deadlines_table(kept: Row) -> list[str]:
    """One row a policy, over all seeds, beside fcfs with the same seed."""
    fcfs = {row["seed"]: row for row in kept["rows"] if row["policy"] == "fcfs"}
    rows = []
    for policy in dict.fromkeys(row["policy"] for row in kept["rows"]):
        group = [row for row in kept["rows"] if row["policy"] == policy]
        rows.append(
            [
                f"`{policy}`",
                spread([row["met"] for row in group], ".0%"),
                spread([row["met"] / fcfs[row["seed"]]["met"] for row in group], ".2f", "×"),
                spread(
                    [fcfs[row["seed"]]["mean_e2el_s"] / row["mean_e2el_s"] for row in group],
                    ".2f",
                    "×",
                ),
                spread([row["mean_ttft_s"] for row in group], ".2f", " s"),
                spread([row["p99_e2el_s"] for row in group], ".1f", " s"),
            ]
        )
    heads = "policy,deadlines met,over fcfs,mean latency: fcfs / policy,mean TTFT,p99 latency"
    return table(heads.split(","), rows)


def tenants_table(kept: Row) -> list[str]:
    """One row a cap, over all seeds."""
    rows = []
    for lead in dict.fromkeys(row["max_tenant_lead"] for row in kept["rows"]):
        group = [row for row in kept["rows"] if row["max_tenant_lead"] == lead]
        rows.append(
            [
                "off" if lead is None else f"{lead:,}",
                *(
                    spread([row[name] for row in group], form, " s")
                    for name, form in (
                        ("light_ttft_s", ".2f"),
                        ("light_p99_ttft_s", ".1f"),
                        ("flood_ttft_s", ".1f"),
                        ("mean_e2el_s", ".1f"),
                    )
                ),
            ]
        )
    heads = (
        "`max_tenant_lead`,mean TTFT of the others,p99 TTFT of the others,mean TTFT of the flood,"
        "mean latency of all"
    )
    return table(heads.split(","), rows)


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


SERVICE_TABLES: Final[Mapping[str, Callable[[Row], list[str]]]] = {
    "deadlines": deadlines_table,
    "tenants": tenants_table,
    "replicas": replicas_table,
    "ray-cluster": ray_cluster_table,
    "gateway": gateway_table,
}
