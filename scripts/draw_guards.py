"""Draw what guards keep of the mean against what they keep of the tail; see docs_hooks.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lengthwise.measure import charts

LOADS = ("burst", "1.2", "1.05")
#: Guards that are drawn as one line, from the tightest to the loosest.
FAMILIES = {"max_overtakes": "overtaking", "max_wait_s": "waiting", "max_lead": "lead"}


def draw(rows: Sequence[Mapping[str, Any]]) -> str:
    """One panel a load, one line a kind of guard: fcfs / policy of mean against 99th percentile.

    Args:
        rows: of `python bench/guards.py --json`; those without pausing are drawn.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context(charts.STYLE):
        figure = Figure(figsize=(7.4, 2.9), layout="constrained")
        panels = figure.subplots(1, len(LOADS), sharey=True)
        for axes, load in zip(panels, LOADS, strict=True):
            chosen = [row for row in rows if row["load"] == load and not row["pausing"]]
            for (name, label), colour in zip(FAMILIES.items(), charts.SERIES, strict=False):
                line = [row for row in chosen if row["guard"].startswith(name)]
                line.sort(key=lambda row: row["mean"])
                ours = {"color": colour, "marker": "o", "markersize": 4, "label": label}
                axes.plot([row["p99"] for row in line], [row["mean"] for row in line], **ours)
            bare = next(row for row in chosen if row["guard"] == "none")
            axes.plot([bare["p99"]], [bare["mean"]], "k^", markersize=5, label="none")
            axes.plot([1.0], [1.0], "ks", markersize=4, label="fcfs")
            axes.set_title("burst" if load == "burst" else f"load {load}", fontsize=9.5, loc="left")
            axes.set_xlabel("99th percentile, fcfs / guard")
        panels[0].set_ylabel("mean, fcfs / guard")
        panels[-1].legend(frameon=False, fontsize=8)
        return charts.inline_svg(
            figure, "guards", "Gain in mean latency against the tail, for kinds of guards"
        )
