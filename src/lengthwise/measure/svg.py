"""A matplotlib figure as inline SVG that takes its colours and fonts from the page.

matplotlib needs real colours, so each role has a stand-in that occurs nowhere else; in the SVG it
is replaced by the CSS variable of that role. The page defines the variables, for light and dark.
"""

from __future__ import annotations

import html
import io
import re
from typing import Any

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
