"""What was measured of serving as Markdown tables: deadlines and tenants."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from scripts.columns import Row, spread, table


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


SERVICE_TABLES: Final[Mapping[str, Callable[[Row], list[str]]]] = {
    "deadlines": deadlines_table,
    "tenants": tenants_table,
}
