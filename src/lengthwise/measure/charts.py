"""The report's figures as inline SVG, one small drawing each, so that they flow on a narrow screen.

A matplotlib figure becomes SVG that takes its colours and fonts from the page. matplotlib needs
real colours, so each role has a stand-in that occurs nowhere else; in the SVG it is replaced by the
CSS variable of that role. The page defines the variables, for light and dark.

Bars start at zero and show every round as a dot beside the median. Lines differ in colour (a
palette after Okabe and Ito, safe for colour blindness) and in dashes.
"""

from __future__ import annotations

import html
import io
import re
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.measure.comparison import Comparison, PolicyResult, knows_lengths
from lengthwise.measure.metrics import request_metrics
from lengthwise.measure.results import Records
from lengthwise.measure.wording import broken_label, seconds

Floats = NDArray[np.float64]
Dashes = tuple[float, ...]

INK = "#0a0b01"  # text and axes
MUTED = "#0a0b02"  # ticks
GRID = "#0a0b03"  # grid lines
CARD = "#0a0b0c"  # what the figure lies on
BASELINE = "#0a0b04"  # the baseline's series
ORACLE = "#0a0b05"  # the oracle's series
SERIES = ("#0a0b06", "#0a0b07", "#0a0b08", "#0a0b09", "#0a0b0a", "#0a0b0b")  # all others

CSS_VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    CARD: "--card",
    BASELINE: "--baseline",
    ORACLE: "--oracle",
    **{colour: f"--series-{number}" for number, colour in enumerate(SERIES)},
}

STYLE = {
    "svg.fonttype": "none",  # text stays text: it can be selected and takes the page's font
    "svg.hashsalt": "lengthwise",  # the same figure gives the same bytes
    "font.family": "sans-serif",
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "figure.facecolor": "none",
    "lines.linewidth": 1.8,
}

_WIDTH, _HEIGHT = 4.0, 2.7  # inches; shown at about 340 CSS pixels
_DASHES: tuple[Dashes, ...] = ((), (5, 1.5), (1.5, 1.2), (6, 1.5, 1.5, 1.5), (9, 2), (3, 1))
_POINTS = 200  # points a curve
_LABEL = 32  # characters of a line beside a bar


def inline_svg(figure: Any, identifier: str, description: str) -> str:
    """Turn a matplotlib figure into an `<svg>` element for an HTML page.

    Args:
        figure: drawn with the colours and the STYLE of this module.
        identifier: unique in the page; goes before every id in the SVG.
        description: read to those who cannot see the figure.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    for before in (' id="', "url(#", 'href="#'):
        text = text.replace(before, f"{before}{identifier}-")
    for colour, variable in CSS_VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    label = html.escape(description, quote=True)
    return text.replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


@dataclass(frozen=True)
class Series:
    """How a policy is drawn everywhere."""

    colour: str  # a stand-in, see CSS_VARIABLES
    dashes: Dashes  # on, off, … in points; () is a solid line

    @property
    def style(self) -> str | tuple[int, Dashes]:
        """The line style in matplotlib's terms."""
        return (0, self.dashes) if self.dashes else "solid"


@dataclass(frozen=True)
class Drawing:
    """One figure of the report."""

    title: str
    svg: str
    caption: str


def series(comparison: Comparison) -> dict[str, Series]:
    """A look for each policy of a run."""
    looks: dict[str, Series] = {}
    others = 0
    for label in dict.fromkeys(result.policy for result in comparison.results):
        if label == comparison.baseline:
            looks[label] = Series(BASELINE, ())
        elif label == comparison.oracle or knows_lengths(label):
            looks[label] = Series(ORACLE, (2.5, 1.5))
        else:
            count = len(SERIES)
            dashes = _DASHES[(others + others // count) % len(_DASHES)]
            looks[label] = Series(SERIES[others % count], dashes)
            others += 1
    return looks


def draw_load(
    results: list[PolicyResult],
    records: dict[int, Records],
    looks: dict[str, Series],
    identifier: str,
) -> list[Drawing]:
    """All figures of one load.

    Args:
        results: the policies at this load.
        records: the requests of each round, by the round's number.
        looks: see `series`.
        identifier: unique in the page; the drawings' ids begin with it.
    """
    import matplotlib as mpl

    pooled = {
        result.policy: [request_metrics(records[each.info.round]) for each in result.rounds]
        for result in results
    }
    latency = {
        policy: np.concatenate([each.e2el for each in rounds]) for policy, rounds in pooled.items()
    }
    length = {
        policy: np.concatenate([each.output_tokens for each in rounds])
        for policy, rounds in pooled.items()
    }
    if not any(len(values) for values in latency.values()):
        return []
    with mpl.rc_context(STYLE):
        return [
            *(
                _bars(results, looks, name, title, f"{identifier}-{number}")
                for number, (name, title) in enumerate(
                    (
                        ("mean_e2el_ms", "Mean latency, s"),
                        ("p99_e2el_ms", "99th percentile of latency, s"),
                        ("mean_latency_per_output_token_ms", "Latency per output token, s"),
                    )
                )
            ),
            _distribution(latency, looks, f"{identifier}-3"),
            _by_length(latency, length, looks, f"{identifier}-4"),
            _open_requests(results, records, looks, f"{identifier}-5"),
        ]


def _bars(
    results: list[PolicyResult],
    looks: dict[str, Series],
    name: str,
    title: str,
    identifier: str,
) -> Drawing:
    # A path that an option names may be longer than the drawing is wide.
    labels = [
        "\n".join(
            part for line in broken_label(result.policy).split("\n") for part in wrap(line, _LABEL)
        )
        for result in results
    ]
    lines = max(label.count("\n") + 1 for label in labels)
    width = max(len(line) for label in labels for line in label.split("\n"))
    height = 0.4 + (0.2 + 0.14 * lines) * len(results)
    axes = _axes(height, left=0.2 + 0.073 * width, bottom=0.27)
    axes.grid(visible=False, axis="y")
    rows = np.arange(len(results))
    spreads = [result.spread(name) for result in results]
    medians = [0.0 if spread is None else spread.median / 1000 for spread in spreads]
    colours = [looks[result.policy].colour for result in results]
    axes.barh(rows, medians, height=0.62, color=colours, alpha=0.75)
    right = max([spread.high / 1000 for spread in spreads if spread is not None], default=1.0)
    for row, result in enumerate(results):
        spread = spreads[row]
        if spread is None:
            continue
        if len(result.rounds) > 1:
            values = [each.figure(name) / 1000 for each in result.rounds]
            # The edge keeps dots apart from one another and from a bar of their own colour.
            dots = {"markersize": 3.6, "markeredgecolor": CARD, "markeredgewidth": 0.7}
            axes.plot(values, [row] * len(values), "o", color=INK, **dots)
        axes.text(spread.high / 1000 + 0.045 * right, row, seconds(spread.median), va="center")
    axes.set_yticks(rows, labels, fontsize=8.5 if lines > 1 else None)
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.set_ylim(len(results) - 0.5, -0.5)
    axes.set_xlim(0, right * 1.24)
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="x", length=0)
    words = ", ".join(
        f"{result.policy} {seconds(None if spread is None else spread.median)}"
        for result, spread in zip(results, spreads, strict=True)
    )
    repeated = max(len(each.rounds) for each in results) > 1
    caption = "Less is better. Dots: the single rounds." if repeated else "Less is better."
    return _finish(axes, identifier, title, f"{title}: {words}", caption)


def _distribution(latency: dict[str, Floats], looks: dict[str, Series], identifier: str) -> Drawing:
    axes = _axes()
    share = np.linspace(0, 100, _POINTS)
    for policy, values in latency.items():
        if len(values):
            _line(axes, np.percentile(values, share), share, looks[policy])
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.set_xlabel("latency, s")
    axes.set_ylabel("requests, %")
    axes.set_ylim(0, 101)
    return _finish(
        axes,
        identifier,
        "Answered within",
        "Distribution of latency, a curve for each policy",
        "Further left is better; where curves cross, some requests pay for others.",
    )


def _by_length(
    latency: dict[str, Floats],
    length: dict[str, NDArray[np.int32]],
    looks: dict[str, Series],
    identifier: str,
) -> Drawing:
    axes = _axes()
    everything = np.concatenate(list(length.values()))
    edges = np.unique(np.quantile(everything, np.linspace(0, 1, 11)))
    for policy, values in latency.items():
        groups = np.searchsorted(edges[1:-1], length[policy], side="right")
        present = np.unique(groups)
        if len(present):
            centres = np.array([np.mean(length[policy][groups == each]) for each in present])
            means = np.array([np.mean(values[groups == each]) for each in present])
            _line(axes, centres, means, looks[policy], marker="o")
    axes.set_xscale("log")
    _plain_numbers(axes.xaxis)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("answer length, tokens")
    axes.set_ylabel("mean latency, s")
    return _finish(
        axes,
        identifier,
        "Who waits: latency by answer length",
        "Mean latency by answer length, a curve for each policy",
        "Each point is a tenth of the requests, from the shortest answers to the longest.",
    )


def _open_requests(
    results: list[PolicyResult],
    records: dict[int, Records],
    looks: dict[str, Series],
    identifier: str,
) -> Drawing:
    axes = _axes()
    for result in results:
        first = min(result.rounds, key=lambda each: each.info.repeat)
        columns = records[first.info.round]
        done = columns.completed
        if not done.any():
            continue
        sent, finished = np.sort(columns.sent_s[done]), np.sort(columns.finish_s[done])
        times = np.linspace(0, finished[-1], _POINTS)
        unanswered = np.searchsorted(sent, times, side="right") - np.searchsorted(
            finished, times, side="right"
        )
        _line(axes, times, unanswered, looks[result.policy])
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("time since the round began, s")
    axes.set_ylabel("requests")
    return _finish(
        axes,
        identifier,
        "Requests not yet answered",
        "Requests not yet answered over time, a curve for each policy",
        "The first round of each. The area under a curve is the sum of all latencies; where "
        "curves end together, the same work took the same time.",
    )


def _axes(height: float = _HEIGHT, left: float = 0.62, bottom: float = 0.45) -> Any:
    """Axes to draw on, in a figure of their own; sizes and margins in inches."""
    from matplotlib.figure import Figure

    # Fixed margins: a layout engine would double the time, for fonts that the page replaces.
    figure = Figure(figsize=(_WIDTH, height))
    box = (left / _WIDTH, bottom / height, (3.9 - left) / _WIDTH, (height - bottom - 0.08) / height)
    axes = figure.add_axes(box)
    axes.yaxis.set_label_coords(0.1 / _WIDTH, 0.5, transform=figure.transFigure)
    return axes


def _finish(axes: Any, identifier: str, title: str, description: str, caption: str) -> Drawing:
    return Drawing(title, inline_svg(axes.figure, identifier, description), caption)


def _line(
    axes: Any, x: NDArray[Any], y: NDArray[Any], look: Series, marker: str | None = None
) -> None:
    axes.plot(x, y, color=look.colour, linestyle=look.style, marker=marker, markersize=3.2)


def _plain_numbers(axis: Any) -> None:
    """Label a logarithmic axis with 0.1, 1, 10 and, where it is short, 2 and 5 between them."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
