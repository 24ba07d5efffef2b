"""Pictures of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Final

from lengthwise.advise.cell import Figures

_DRAWN: Final = (
    ("mean_e2el_ms", "Mean end-to-end latency (s)"),
    ("p99_e2el_ms", "p99 end-to-end latency (s)"),
    ("mean_ttft_ms", "Mean time to first token (s)"),
)


def write_plots(rows: Sequence[Figures], folder: Path) -> list[Path]:
    """Latency over load for each policy, one SVG a figure; medians over seeds.

    Loads that are no numbers (a burst) are left out; nothing is drawn for less than two loads.

    Returns:
        The files.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    curves: dict[str, dict[float, list[Figures]]] = {}
    for row in rows:
        load = row.get("offered_load")
        if "error" not in row and load is not None and row["load"] != "burst":
            by_load = curves.setdefault(row["policy"], {})
            by_load.setdefault(round(load, 3), []).append(row)
    files: list[Path] = []
    if max((len(by_load) for by_load in curves.values()), default=0) < 2:
        return files
    for name, title in _DRAWN:
        figure, axes = pyplot.subplots(figsize=(6.4, 4.0))
        for policy, by_load in curves.items():
            loads = sorted(by_load)
            axes.plot(
                loads,
                [median(row[name] for row in by_load[load]) / 1000 for load in loads],
                marker="o",
                markersize=3,
                label=policy,
            )
        axes.set(xlabel="Offered load", ylabel=title, yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
        file = folder / f"{name.removesuffix('_ms')}.svg"
        figure.savefig(file, bbox_inches="tight", metadata={"Date": None})
        pyplot.close(figure)
        files.append(file)
    return files
