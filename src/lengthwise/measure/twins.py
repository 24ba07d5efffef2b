"""Live results beside their exact twins: the same burst over HTTP and in virtual time.

A run that has them keeps each side in a folder below its own, as a run that started when it did.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lengthwise.measure.comparison import PolicyResult, compare
from lengthwise.measure.results import LIVE, RUN_FILE, VIRTUAL, Results, read_results
from lengthwise.measure.wording import NOTHING, change, factor, load_title, seconds

LIVE_FOLDER: Final = "live"
TWIN_FOLDER: Final = "twin"


@dataclass(frozen=True)
class Twin:
    """A policy's figures, live and in virtual time."""

    live: PolicyResult
    exact: PolicyResult

    @property
    def remarks(self) -> tuple[str, ...]:
        """What explains the difference, one line each."""
        return self.live.rounds[0].info.remarks

    def difference(self, figure: str) -> float | None:
        """live / virtual - 1; None where a side has no such figure, or 0."""
        live, exact = (side.rounds[0].figure(figure) for side in (self.live, self.exact))
        ratio = live / exact if exact else math.nan
        return ratio - 1.0 if math.isfinite(ratio) else None


def read_twins(folder: Path, results: Results) -> list[Twin]:
    """The twins of a run, one for each policy; none where the run has none.

    Args:
        folder: the run's.
        results: what was read from it.

    Raises:
        InputError: a newer Lengthwise wrote them.
    """
    sides = []
    for name in (LIVE_FOLDER, TWIN_FOLDER):
        if not (folder / name / RUN_FILE).exists() or not any((folder / name).glob("*.parquet")):
            return []  # the server did not come up
        side = read_results(folder / name)
        if side.run.started != results.run.started:
            return []  # an earlier run left it
        sides.append({result.policy: result for result in compare(side).results})
    live, exact = sides
    return [Twin(live[policy], exact[policy]) for policy in exact if policy in live]


_COLUMNS = (
    ("mean", "mean_e2el_ms"),
    ("p50", "median_e2el_ms"),
    ("p99", "p99_e2el_ms"),
    ("TTFT", "mean_ttft_ms"),
    ("s/token", "mean_latency_per_output_token_ms"),
)
_HEADS = ("policy", "engine", *(name for name, _ in _COLUMNS), "factor")
_DIFFERENCE = "difference"

_EXPLANATION = """
<p>The same requests twice. <b>Live</b>: vLLM's OpenAI server on this machine, its executor
sleeping for as long as each step takes on the GPU; every token streamed over HTTP to a client, on
the wall's clock. <b>Virtual</b>: as in the tables above. The difference is what a schedule in
virtual time leaves out: the time that requests take to reach the scheduler one after the other,
the front end, the client, and how punctually this machine takes its steps. It is another one in
each run.</p>
"""


def twins_table(twins: Sequence[Twin]) -> RenderableType:
    """Three lines for each policy: live, virtual and the difference."""
    table = Table(
        title=_title(twins),
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
    )
    for place, name in enumerate(_HEADS):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    for twin in twins:
        for line in _lines(twin):
            table.add_row(*line)
    return Group(table, *(Text(remark, style="dim") for remark in _remarks(twins)))


def twins_section(twins: Sequence[Twin]) -> str:
    """The part of the report; nothing without twins."""
    if not twins:
        return ""
    heads = "".join(f"<th>{name}</th>" for name in _HEADS)
    rows = "".join(_html_row(line) for twin in twins for line in _lines(twin))
    return f"""<h3>{escape(_title(twins))}</h3>
<div class="scroll"><table class="twins">
<thead><tr>{heads}</tr></thead>
<tbody>{rows}</tbody>
</table></div>
{_EXPLANATION}<ul>{"".join(f"<li>{escape(remark)}</li>" for remark in _remarks(twins))}</ul>
"""


def _title(twins: Sequence[Twin]) -> str:
    failed = sum(int(twin.live.summary()["failed"] or 0) for twin in twins)
    title = f"{load_title(twins[0].exact.load)}, live beside virtual time"
    return f"{title}; {failed} live requests failed" if failed else title


def _remarks(twins: Sequence[Twin]) -> list[str]:
    return [f"{twin.live.policy}, live: {remark}" for twin in twins for remark in twin.remarks]


def _lines(twin: Twin) -> Iterator[list[str]]:
    """The cells of a policy's lines."""
    yield [twin.live.policy, LIVE, *_figures(twin.live)]
    yield [twin.live.policy, VIRTUAL, *_figures(twin.exact)]
    yield ["", _DIFFERENCE, *(change(twin.difference(name)) for _, name in _COLUMNS), ""]


def _figures(result: PolicyResult) -> list[str]:
    figures = result.summary()
    ratio = result.ratios.get("mean_e2el_ms")
    return [
        *(seconds(figures[name]) for _, name in _COLUMNS),
        NOTHING if ratio is None else factor(ratio),
    ]


def _html_row(line: Sequence[str]) -> str:
    policy, *cells = map(escape, line)
    kind = " class=difference" if cells[0] == _DIFFERENCE else ""
    return f"<tr{kind}><th>{policy}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>\n"
