"""Draw latency against tau from the rows of bench/figures/doubt.py; see docs_hooks.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.measure import charts

POLICY = "srpt"
PANELS = (
    ("mean_e2el", "Mean latency"),
    ("mean_latency_per_output_token", "Latency per output token"),
    ("mean_ttft", "Mean time to first token"),
    ("p99_e2el", "99th percentile of latency"),
)


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """How many times lower latency is than under fcfs, one panel a metric, one line a load.

    Lines are medians over the seeds, bands their smallest and largest.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    chosen = [row for row in rows if row["policy"] == POLICY]
    loads = list(dict.fromkeys(row["load"] for row in chosen))
    with mpl.rc_context(charts.STYLE):
        figure = Figure(figsize=(7.4, 5.4), layout="constrained")
        grid = figure.subplots(2, 2, sharex=True)
        for axes, (metric, title) in zip(grid.flat, PANELS, strict=True):
            for load, colour in zip(loads, charts.SERIES, strict=False):
                line = sorted((r for r in chosen if r["load"] == load), key=lambda r: r["tau"])
                taus = [row["tau"] for row in line]
                name = f"factor_{metric}"
                axes.plot(taus, [row[name] for row in line], color=colour, label=load)
                low, high = ([row[f"{name}_{end}"] for row in line] for end in ("low", "high"))
                axes.fill_between(taus, low, high, color=colour, alpha=0.15, linewidth=0)
            axes.axhline(1.0, color=charts.BASELINE, linewidth=1.0)
            axes.set_title(title, fontsize=9.5, loc="left")
            axes.set_ylabel("fcfs / srpt")
        for axes in grid[1]:
            axes.set_xlabel("Kendall's tau of the predictor")
        grid[0, 0].legend(title="load", frameon=False)
        return charts.inline_svg(
            figure, "tau", "Latency of srpt compared with fcfs, against the predictor's tau"
        )
