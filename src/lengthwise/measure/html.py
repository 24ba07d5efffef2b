"""report.html: one file without scripts that needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib import resources

from lengthwise.measure import svg
from lengthwise.measure.charts import Drawing, Series, draw_load, series
from lengthwise.measure.comparison import (
    Comparison,
    PolicyResult,
    RoundResult,
    Spread,
    knows_lengths,
)
from lengthwise.measure.results import Results
from lengthwise.measure.run_info import VIRTUAL
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
        f'style="stroke: var({svg.CSS_VARIABLES[look.colour]})"/></svg>'
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
