"""What was set out to be reached, beside what was measured: targets.toml, from docs/results/."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.columns import Row, table

Rows = Sequence[Row]
TARGETS = Path(__file__).with_suffix(".toml")
#: Figures that no row has, from a row and all rows.
COMPUTED: dict[str, Callable[[Row, Rows], float]] = {
    # From the times, since shares are kept rounded.
    "added_percent_unrounded": lambda row, _: 100 * row["added_us"] / row["stock_us"],
    "closed_of_the_rest": lambda row, rows: share_of_rest(
        row["gap_closed"], only(rows, policy="trail-bert")["gap_closed"]
    ),
    "coverage_error": lambda row, _: abs(row["coverage_80"] - 0.8),
    "tau_below_ranker": lambda row, rows: only(rows, label="Vicuna-7B")["tau"] - row["tau"],
}


def share_of_rest(closed: float, by_prompt: float) -> float:
    """Of what ordering by the prompt leaves of the oracle's gain, how much is closed."""
    return (closed - by_prompt) / (1.0 - by_prompt)


@dataclass(frozen=True)
class Find:
    """Takes a figure from rows; `targets.toml` says what each of these means."""

    take: str = "only"
    where: Mapping[str, Any] = field(default_factory=dict)
    without: str = ""
    over: str = ""
    same: Sequence[str] = ()

    def measured(self, rows: Rows, figure: str) -> tuple[float, float | None, float | None]:
        """The figure, and the ends of its interval where it has one."""
        found = [row for row in rows if matches(row, self.where) and row.get(self.without) is None]
        values = [value for row in found if (value := self._value(row, rows, figure)) is not None]
        if self.take == "only":
            (value,) = values
            (row,) = found
            *parts, name = figure.split("/")
            within = part_of(row, parts)
            return value, within.get(f"{name}_low"), within.get(f"{name}_high")
        if self.take == "largest":
            return max(values), None, None
        if self.take == "largest error":
            return max(map(abs, values)), None, None
        if self.take == "smallest":
            return min(values), None, None
        if self.take == "smallest of repeats":
            return min(values), min(values), max(values)
        raise ValueError(f"{TARGETS.name}: unknown take {self.take!r}")

    def _value(self, row: Row, rows: Rows, figure: str) -> float | None:
        if figure in COMPUTED:
            return COMPUTED[figure](row, rows)
        value: float | None = part_of(row, figure.split("/"))
        if not self.over or value is None:
            return value
        other = {name: row[name] for name in self.same} | {"policy": self.over.format_map(row)}
        quotient: float = value / only(rows, **other)[figure]
        return quotient


def matches(row: Row, where: Mapping[str, Any]) -> bool:
    """Whether a row has these values; a list stands for any of them."""
    return all(
        row.get(name) in value if isinstance(value, list) else row.get(name) == value
        for name, value in where.items()
    )


def only(rows: Rows, **where: object) -> Row:
    """The one row with these values."""
    (found,) = (row for row in rows if matches(row, where))
    return found


def part_of(row: Row, path: Sequence[str]) -> Any:
    """What lies in a row at the end of a path; None where the path ends earlier."""
    part: Any = row
    for name in path:
        part = None if part is None else part.get(name)
    return part


def cells(rows: Rows | None, find: Find, what: str, asked: str, figure: str) -> list[str]:
    """One line of the table; no rows, not measured."""
    if rows is None:
        return [what, asked, "not measured", "—"]
    sign, number = asked.split()
    # The figure is written as what was asked is, and compared as it is.
    form = f"{',' * (',' in number)}.{len(number.partition('.')[2])}f"
    value, low, high = find.measured(rows, figure)
    shown = f"{value:{form}}"
    if low is not None and high is not None and low < high:
        shown += f" ({low:{form}}–{high:{form}})"
    bound = float(number.replace(",", ""))
    met = {"≥": value >= bound, "≤": value <= bound}[sign]
    return [what, asked, shown, "yes" if met else "**no**"]


def targets_table(results: Mapping[str, Row]) -> list[str]:
    """All targets; `results` has what docs/results/ holds, by name."""
    lines = []
    for title, blocks in tomllib.loads(TARGETS.read_text(encoding="utf-8")).items():
        found = []
        for block in blocks:
            name, targets, where = block.pop("results"), block.pop("lines"), block.pop("where", {})
            rows = results[name]["rows"] if name in results else None
            for what, asked, figure, *own in targets:
                find = Find(where=where | (own[0] if own else {}), **block)
                found.append(cells(rows, find, what, asked, figure))
        lines += ["", f"## {title}", ""]
        lines += table(["", "asked", "measured", "reached"], found)
    return lines
