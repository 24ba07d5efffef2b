"""What is drawn and computed when the site is built."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts import draw_guards, draw_tau, theory_numbers
from scripts.generated.markdown import code, table

ROOT = Path(__file__).parents[2]


def theory(name: str) -> str:
    """A part of the theory page, computed now: a function of scripts/theory_numbers.py."""
    part = getattr(theory_numbers, name)()
    return part if isinstance(part, str) else table(*part)


def tau_figure(_: str) -> str:
    """Latency against tau."""
    return plot(draw_tau.draw(rows_of("tau")))


def guards_figure(_: str) -> str:
    """Mean against tail for kinds of guards."""
    return plot(draw_guards.draw(rows_of("choose-guard")))


def plot(drawing: str) -> str:
    """A drawing as one line: Markdown takes an empty one for the end of the figure."""
    return f'<figure class="plot">{" ".join(drawing.split())}</figure>'


def guards_table(_: str) -> str:
    """The rows of docs/results/choose-guard.json."""
    figures = ("mean", "p99", "longest_wait", "worst_wait")
    heads = ("load", "guard", "pausing", *figures, "bounds")
    rows = [
        (
            row["load"],
            code(row["guard"]),
            "on" if row["pausing"] else "off",
            *(f"{row[name]:.2f}×" for name in figures),
            row["bound"],
        )
        for row in rows_of("choose-guard")
    ]
    return table(heads, rows)


def rows_of(name: str) -> list[dict[str, Any]]:
    """What docs/results/ has of a table."""
    kept = (ROOT / "docs" / "results" / f"{name}.json").read_text(encoding="utf-8")
    rows: list[dict[str, Any]] = json.loads(kept)["rows"]
    return rows
