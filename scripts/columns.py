"""Tables by their columns, `heading = cell | heading = cell`, and how a cell is written of a row.

`{name}` is a row's value as it is, a dash where there is none. What may follow a colon:

    .1f, +.0%, ,.0f    a format of Python's; a dash where there is no number
    plain .0%          the same, with no space before the percent sign
    seconds            milliseconds as seconds, three digits
    load               a load in words
    ratio              1.45× (1.41–1.50): beside it `name_low` and `name_high`
    interval .1f       37.0 (35.1–39.2), likewise
    tau                0.524 (0.502–0.543), of the whole row or of a value that has a tau
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from lengthwise.measure.wording import load_title
from lengthwise.measure.wording import seconds as in_seconds

Row = Mapping[str, Any]
#: What begins the tables of policies.
BESIDE_FCFS = """
    load = {load:load} | policy = `{policy}` | mean s = {mean_e2el_ms:seconds} |
    fcfs / policy = {factor_mean_e2el:ratio} |
    s/token = {mean_latency_per_output_token_ms:seconds} |
    fcfs / policy = {factor_mean_latency_per_output_token:ratio}
"""
_FIELD = re.compile(r"\{(\w*)(?::([^}]*))?\}")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *rows)]


def columns(spec: str, rows: Sequence[Row]) -> list[str]:
    """A Markdown table of rows.

    Args:
        spec: the columns, `heading = cell`, with a bar or a new line between two.
        rows: what was measured.
    """
    pairs = [each.strip().split(" = ") for each in re.split(r"[|\n]", spec) if each.strip()]
    lines = [[cell(template, row) for _, template in pairs] for row in rows]
    return table([heading for heading, _ in pairs], lines)


def cell(template: str, row: Row) -> str:
    """One cell of a row."""
    return _FIELD.sub(lambda found: _written(row, found[1], found[2] or ""), template)


def _written(row: Row, name: str, how: str) -> str:
    kind, _, form = how.partition(" ")
    value = row.get(name)
    if kind == "tau":
        return tau(row if not name else row[name])
    if kind == "ratio":
        return ratio(row, name)
    if kind == "interval":
        return f"{value:{form}} ({row[f'{name}_low']:{form}}–{row[f'{name}_high']:{form}})"
    if kind == "load":
        return load_title(str(value))
    if value is None:
        return "—"
    if kind == "seconds":
        return in_seconds(value)
    return f"{value:{form}}" if kind == "plain" else f"{value:{how}}".replace("%", " %")


def tau(row: Row) -> str:
    """0.524 (0.502–0.543): a tau with its interval."""
    if row["tau"] is None:
        return "—"
    return f"{row['tau']:.3f} ({row['tau_low']:.3f}–{row['tau_high']:.3f})"


def ratio(row: Row, name: str) -> str:
    """1.45× (1.41–1.50): the median, the smallest and the largest of the repeats."""
    median, low, high = row[name], row[f"{name}_low"], row[f"{name}_high"]
    if median is None:
        return "—"
    return f"{median:.2f}×" + (f" ({low:.2f}–{high:.2f})" if low < high else "")


def spread(values: Sequence[float], form: str, unit: str = "") -> str:
    """1.45× (1.41–1.50): the median, the smallest and the largest of the seeds."""
    middle = f"{median(values):{form}}{unit}"
    low, high = (f"{value:{form}}" for value in (min(values), max(values)))
    return middle if low == high else f"{middle} ({low}–{high})"
