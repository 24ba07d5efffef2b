"""From a run's folder to report.html and results.json.

report.html is one file without scripts that needs no network. results.json has the figures of each
policy and load, and of each twin.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape
from importlib import resources
from pathlib import Path

from lengthwise.errors import InputError
from lengthwise.files import replaced
from lengthwise.measure.charts import CSS_VARIABLES, Drawing, Series, draw_load, series
from lengthwise.measure.comparison import (
    COMPARED,
    Comparison,
    PolicyResult,
    RoundResult,
    Spread,
    compare,
    knows_lengths,
    load_number,
)
from lengthwise.measure.results import LIVE, VIRTUAL, Results
from lengthwise.measure.twins import Twin, twins_section
from lengthwise.measure.wording import (
    NOTHING,
    TIMES,
    factor,
    headline,
    limits,
    load_title,
    method,
    percent,
    seconds,
    setting_title,
)

REPORT_FILE = "report.html"
RESULTS_FILE = "results.json"

Row = dict[str, object]

_COLUMNS = (
    ("mean", "mean_e2el_ms"),
    ("p50", "median_e2el_ms"),
    ("p95", "p95_e2el_ms"),
    ("p99", "p99_e2el_ms"),
    ("max", "max_e2el_ms"),
    ("mean TTFT", "mean_ttft_ms"),
    ("per token", "mean_latency_per_output_token_ms"),
    ("longest wait", "max_waiting_time_ms"),
)
_FACTORS = (
    ("mean", "mean_e2el_ms"),
    ("per token", "mean_latency_per_output_token_ms"),
    ("p99", "p99_e2el_ms"),
)


def report_page(results: Results, comparison: Comparison, twins: Sequence[Twin] = ()) -> str:
    """The whole report of a run as an HTML document."""
    looks = series(comparison)
    records = {each.info.round: each.records for each in results.rounds}
    figures = []
    for number, (load, of_load) in enumerate(comparison.by_load()):
        drawings = draw_load(of_load, records, looks, f"load{number}")
        figures.append(_figures(load, [each.policy for each in of_load], drawings, looks))
    css = resources.files("lengthwise.measure").joinpath("report.css").read_text(encoding="utf-8")
    run = results.run
    engine = "virtual time" if run.engine == VIRTUAL else "live engine"
    about = (
        f"{engine} · {run.model} · {run.dataset} · {run.requests} requests a round · "
        f"{run.started[:10]}"
    )
    note = f'<p class="about">{escape(run.engine_note)}</p>\n' if run.engine_note else ""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Lengthwise: {escape(run.model)}, {escape(run.started[:10])}</title>
<style>
{css}</style>
</head>
<body>
<main>
<h1>Lengthwise comparison of scheduling policies</h1>
<p class="result">{escape(headline(comparison))}</p>
<p class="about">{escape(about)}</p>
{note}{_notices(results, comparison)}
{"".join(_policies(load, of_load, comparison) for load, of_load in comparison.by_load())}
{twins_section(twins)}
{"".join(figures)}
<h2>Method and caveats</h2>
{method(run.engine, forward=run.forward)}
<h2>Rounds</h2>
{_rounds(comparison)}
<h2>Environment</h2>
{_environment(results)}
</main>
</body>
</html>
"""


def _notices(results: Results, comparison: Comparison) -> str:
    lines = list(results.problems)
    rounds = comparison.rounds
    flagged = sum(bool(each.flags) for each in rounds)
    if flagged:
        lines.insert(0, f"{flagged} of {len(rounds)} rounds are flagged; the table below says why.")
    return "".join(f'<p class="notice">{escape(line)}</p>\n' for line in lines)


def _policies(load: str, results: list[PolicyResult], comparison: Comparison) -> str:
    """The comparison at one load."""
    rivals = [
        result
        for result in results
        if result.ratios.get("mean_e2el_ms") is not None and not knows_lengths(result.policy)
    ]
    best = max(rivals, key=lambda result: result.ratios["mean_e2el_ms"].median, default=None)
    factors = "".join(f"<th>{name}</th>" for name, _ in _FACTORS)
    figures = "".join(f"<th>{name}</th>" for name, _ in _COLUMNS)
    rows = "".join(_policy_row(result, result is best, comparison) for result in results)
    baseline = escape(comparison.baseline or "baseline")
    return f"""<h3>{escape(setting_title(load, results, comparison.engine))}</h3>
<div class="scroll"><table>
<thead>
<tr class="groups"><th></th><th colspan="{len(_FACTORS) + 1}">{baseline} / policy</th>
<th colspan="{len(_COLUMNS)}">latency, s</th><th colspan="2"></th></tr>
<tr><th>policy</th>{factors}<th>gap closed</th>{figures}<th>preempted</th><th>failed</th></tr>
</thead>
<tbody>{rows}</tbody>
</table></div>
"""


def _policy_row(result: PolicyResult, best: bool, comparison: Comparison) -> str:
    figures = result.summary()
    cells = ""
    for _, key in _FACTORS:
        if result.policy == comparison.baseline:
            cells += f"<td>1{TIMES}</td>"
        else:
            ratio = result.ratios.get(key)
            cells += _factor_cell(ratio)
    cells += f"<td>{percent(result.gap_closed)}</td>"
    cells += "".join(f"<td>{seconds(figures[key])}</td>" for _, key in _COLUMNS)
    cells += f"<td>{figures['preemptions']}</td><td>{figures['failed']}</td>"
    name = escape(result.policy).replace(":", ":<wbr>").replace(";", ";<wbr>")
    return f"<tr{' class=best' if best else ''}><th>{name}</th>{cells}</tr>\n"


def _factor_cell(ratio: Spread | None) -> str:
    between = limits(ratio)
    small = f"<small>{between}</small>" if between else ""
    worse = " class=worse" if ratio is not None and ratio.median < 1 else ""
    return f"<td{worse}>{factor(ratio)}{small}</td>"


def _figures(
    load: str, policies: list[str], drawings: list[Drawing], looks: dict[str, Series]
) -> str:
    if not drawings:
        return ""
    legend = "".join(f"<li>{_swatch(looks[name])}{escape(name)}</li>" for name in policies)
    cards = "".join(
        f"<figure><h4>{escape(each.title)}</h4>\n{each.svg}\n"
        f"<figcaption>{escape(each.caption)}</figcaption></figure>\n"
        for each in drawings
    )
    return f"""<h2>{escape(load_title(load))}</h2>
<ul class="legend">{legend}</ul>
<div class="drawings">{cards}</div>
"""


def _swatch(look: Series) -> str:
    dashes = " ".join(f"{2 * length:g}" for length in look.dashes)
    return (
        '<svg class="swatch" viewBox="0 0 26 10" aria-hidden="true">'
        f'<line x1="0" x2="26" y1="5" y2="5" stroke-width="3" stroke-dasharray="{dashes}" '
        f'style="stroke: var({CSS_VARIABLES[look.colour]})"/></svg>'
    )


def _rounds(comparison: Comparison) -> str:
    repeat = "seed" if comparison.engine == VIRTUAL else "repeat"
    heads = (
        repeat, "load offered", "capacity, tokens/s", "completed", "failed", "mean, s", "p99, s",
        "output tokens/s", "preempted",
    )  # fmt: skip
    head = "".join(f"<th>{name}</th>" for name in heads)
    rows = "".join(_round_row(each) for each in comparison.rounds)
    return (
        '<div class="scroll"><table class="rounds"><thead><tr><th>round</th><th>load</th>'
        f"<th>policy</th>{head}</tr></thead><tbody>{rows}</tbody></table></div>\n"
    )


def _round_row(each: RoundResult) -> str:
    info, figures = each.info, each.summary
    numbers = (
        str(info.repeat),
        _number(info.offered_load, 2),
        _number(info.capacity_tokens_per_s, 0),
        str(figures["completed"]),
        str(figures["failed"]),
        seconds(figures["mean_e2el_ms"]),
        seconds(figures["p99_e2el_ms"]),
        _number(figures["output_throughput"], 0),
        str(figures["preemptions"]),
    )
    cells = "".join(f"<td>{number}</td>" for number in numbers)
    flags = "".join(f'<small class="flag">{escape(flag)}</small>' for flag in each.flags)
    return (
        f"<tr><td>{info.round}</td><td>{escape(load_title(info.load))}</td>"
        f"<th>{escape(info.policy)}{flags}</th>{cells}</tr>\n"
    )


def _number(value: float | None, digits: int) -> str:
    return NOTHING if value is None or value != value else f"{value:,.{digits}f}"


def _environment(results: Results) -> str:
    run = results.run
    groups = (
        ("Model", run.model),
        ("Dataset", run.dataset),
        ("Started", run.started),
        *((name.replace("_", " ").capitalize(), value) for name, value in run.machine.items()),
        ("Server", ", ".join(f"{name} {value}" for name, value in run.server.items())),
        ("Versions", ", ".join(f"{name} {value}" for name, value in run.versions.items())),
    )
    items = "".join(
        f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in groups if value
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in run.notes)
    return (
        f"<pre>{escape(run.command)}</pre>\n{f'<ul>{notes}</ul>' if notes else ''}"
        f"<dl>{items}</dl>\n"
    )


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
