"""`lengthwise calibrate`: what a real engine's steps cost, and how well a simulation repeats it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.cli.options import JsonOption

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from lengthwise.advise.calibrate import Fit


def calibrate(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="The --out folder of `lengthwise bench`.")
    ],
    against: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Another such folder of the same engine, compared but never fitted to; may be "
            "given again.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="File for the costs.")] = Path("cost.json"),
    json: JsonOption = False,
) -> None:
    """Fit step costs to a benchmark's records, for `lengthwise simulate --cost`.

    Then every round is simulated and compared, with costs fitted to other rounds: at their speed,
    at the round's own mean speed, and at its own speed in every second. The first says what a
    forecast is worth; the last, what of its error is the simulator's and not the machine's.

    Example: `lengthwise calibrate build/b --out build/cost.json`
    """
    from dataclasses import asdict

    from rich.console import Console

    from lengthwise.advise.calibrate import fit_cost
    from lengthwise.advise.fidelity import SPEEDS, agreement, by_round, compare
    from lengthwise.cli.output import ConsoleProgress, print_json, without_nan
    from lengthwise.compare.engine_log import read_measured

    fidelity: list[dict[str, Any]] = []
    rounds: list[dict[str, Any]] = []
    notes: list[str] = []
    with ConsoleProgress() as progress:
        progress.stage(f"reading {folder}")
        fitted, _ = read_measured(folder)
        progress.stage("fitting costs")
        fit = fit_cost(fitted)
        for path in (folder, *(against or ())):
            measured, problems = read_measured(path)
            notes += [f"{path}: {problem}" for problem in problems]
            progress.stage(f"simulating the rounds of {path}", total=len(measured))
            compared = compare(
                fitted if path == folder else measured, fitted, progress=progress.advance
            )
            fidelity += [{"folder": str(path), **row} for row in agreement(compared)]
            rounds += [{"folder": str(path), **row} for row in by_round(compared)]
        for note in notes:
            progress.note(note)
    engine = asdict(fitted[0].engine)
    quality = {name: value for name, value in asdict(fit).items() if name != "cost"}
    fit.cost.write(out, engine=engine, fit=without_nan(quality))
    document = {
        "folder": str(folder),
        "out": str(out),
        "cost": asdict(fit.cost),
        "engine": engine,
        "fit": quality,
        "speeds": SPEEDS,
        "fidelity": fidelity,
        "rounds": rounds,
        "notes": notes,
    }
    if json:
        print_json(document)
        return
    console = Console(highlight=False)
    console.print(_cost_table(fit))
    for path in dict.fromkeys(row["folder"] for row in fidelity):
        for speed, meaning in SPEEDS.items():
            rows = [row for row in fidelity if (row["folder"], row["speed"]) == (path, speed)]
            console.print(_fidelity_table(f"{path} simulated: {meaning}", rows))
    Console(stderr=True, highlight=False, soft_wrap=True).print(f"wrote {out}", markup=False)


def _cost_table(fit: Fit) -> Table:
    """Each cost with its standard error, or the reason why it is not there."""
    from rich.table import Table

    from lengthwise.advise.calibrate import TERMS

    table = Table(
        title=f"Step costs, {fit.cost.source}",
        caption=f"R² {fit.r2:.2f}; a step's error is {fit.mape:.0%} on average, half are nearer "
        f"than {fit.median_error:.0%}. Left out: {fit.idle:,} steps before the engine idled, "
        f"{fit.outliers:,} outliers with {fit.outlier_time:.2%} of the time.",
    )
    for heading in ("cost", "µs", "standard error"):
        table.add_column(heading, justify="left" if heading == "cost" else "right")
    table.add_column("")
    for name in TERMS:
        value = getattr(fit.cost, name)
        spread = fit.standard_errors.get(name)
        table.add_row(
            name,
            f"{value * 1e6:,.3f}",
            "" if spread is None else f"{spread * 1e6:,.3f}",
            fit.left_out.get(name, ""),
        )
    table.add_row("delay_s", f"{fit.cost.delay_s * 1e6:,.3f}", "", "between client and engine")
    return table


def _fidelity_table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """Measured against simulated at one speed."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=title,
        caption="Mean latency measured, in s, and errors (simulated / measured − 1) in %; then the "
        "mean latency over that of fcfs, measured and simulated.",
        box=box.SIMPLE,
    )
    for name in ("policy", "load"):
        table.add_column(name)
    for heading in ("E2E", "mean", "p99", "TTFT", "p99", "TPOT", "/ fcfs", "sim."):
        table.add_column(heading, justify="right")
    for row in rows:
        ratio = row.get("over_fcfs", {}).get("e2el")
        errors = (
            row["e2el"]["mean_error"],
            row["e2el"]["p99_error"],
            row["ttft"]["mean_error"],
            row["ttft"]["p99_error"],
            row["tpot"]["mean_error"],
        )
        table.add_row(
            row["policy"],
            row["load"],
            f"{row['e2el']['measured_mean_s']:.3g}",
            *(f"{100 * error:+.1f}" for error in errors),
            "" if ratio is None else f"{ratio['measured_mean']:.3f}",
            "" if ratio is None else f"{ratio['simulated_mean']:.3f}",
        )
    return table
