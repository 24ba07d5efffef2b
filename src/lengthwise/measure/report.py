"""From a run's folder to report.html and results.json."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from lengthwise.errors import InputError
from lengthwise.files import replaced
from lengthwise.measure.comparison import (
    COMPARED,
    Comparison,
    PolicyResult,
    Spread,
    compare,
    load_number,
)
from lengthwise.measure.results import Results
from lengthwise.measure.run_info import LIVE, VIRTUAL
from lengthwise.measure.twins import Twin

REPORT_FILE = "report.html"
RESULTS_FILE = "results.json"

Row = dict[str, object]


def write_report(
    folder: Path,
    results: Results,
    objectives: dict[str, float] | None = None,
    twins: Sequence[Twin] = (),
) -> Comparison:
    """Write report.html and results.json into a run's folder, each whole or not at all.

    Args:
        folder: where to write.
        results: from `read_results`.
        objectives: see `parse_objectives`.
        twins: of the run, from `read_twins`.

    Raises:
        InputError: the folder cannot be written.
    """
    from lengthwise.measure.html import report_page

    comparison = compare(results, objectives)
    rows = [*result_rows(comparison), *twin_rows(twins)]
    _write(folder / RESULTS_FILE, json.dumps(rows, indent=2, allow_nan=False) + "\n")
    _write(folder / REPORT_FILE, report_page(results, comparison, twins))
    return comparison


def result_rows(comparison: Comparison) -> list[Row]:
    """A row for each policy and load, ready for JSON: undefined figures are null.

    Counts are summed over the rounds, other figures are the medians of the rounds. `factor_X` is
    baseline / policy on figure X, `_low` and `_high` its extremes over the repeats.
    """
    return [_row(result, comparison.engine) for result in comparison.results]


def twin_rows(twins: Sequence[Twin]) -> list[Row]:
    """Two rows for each policy, live and virtual.

    `difference_X` of a live row is live / virtual - 1 on figure X; its `remarks` explain it.
    """
    rows = []
    for twin in twins:
        differences = {
            f"difference_{name.removesuffix('_ms')}": twin.difference(name) for name in COMPARED
        }
        live = _row(twin.live, LIVE) | differences | {"remarks": list(twin.remarks)}
        rows += [live, _row(twin.exact, VIRTUAL)]
    return rows


def _row(result: PolicyResult, engine: str) -> Row:
    number = load_number(result.load)
    row: Row = {
        "policy": result.policy,
        "load": result.load if number is None else number,
        "engine": engine,
    }
    row |= {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in result.summary().items()
    }
    row |= _spread_keys("gap_closed", result.gap_closed)
    for name in COMPARED:
        row |= _spread_keys(f"factor_{name.removesuffix('_ms')}", result.ratios.get(name))
    for name in ("offered_load", "capacity_tokens_per_s"):
        values = [getattr(each.info, name) for each in result.rounds]
        spread = Spread.of(value for value in values if value is not None)
        row[name] = None if spread is None else spread.median
    row["rounds"] = len(result.rounds)
    row["flagged_rounds"] = result.flagged
    if engine == VIRTUAL:
        row = {name: _exact(value) for name, value in row.items()}
    return row


def _exact(value: object) -> object:
    """Without the last digits, which depend on how a processor adds up a column of numbers."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _spread_keys(name: str, spread: Spread | None) -> Row:
    if spread is None:
        return {name: None, f"{name}_low": None, f"{name}_high": None}
    return {name: spread.median, f"{name}_low": spread.low, f"{name}_high": spread.high}


def _write(path: Path, text: str) -> None:
    try:
        with replaced(path) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}: make the folder writable"
        ) from error
