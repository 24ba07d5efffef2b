"""`lengthwise train-probe`: learn to read from hidden states how much of an answer is to come."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lengthwise.cli.options import JsonOption

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from lengthwise.probe.training import Report


class Bins(StrEnum):
    """Shapes of bins."""

    EQUAL = "equal"
    GEOMETRIC = "geometric"


def train_probe(
    states: Annotated[Path, typer.Argument(help="Folder written by `lengthwise collect`.")],
    out: Annotated[Path, typer.Option(help="Folder to write the probe to.")],
    layer: Annotated[
        str,
        typer.Option(
            help="Layer to listen to, several as 2,4 side by side, or `auto`: try each, take the "
            "best on validation answers."
        ),
    ] = "auto",
    bins: Annotated[
        Bins, typer.Option(help="Of one width, or each wider than the one before.")
    ] = Bins.GEOMETRIC,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Number of bins; default: 10 equal or 20 geometric ones."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For weights, order and bootstrap.")] = 0,
    json: JsonOption = False,
) -> None:
    """Train a probe on collected hidden states, and say how good it is on test answers.

    Errors are mean absolute errors of the tokens still to come, over every output token. Stopped
    half-way, the same command goes on where it was. With `--layer auto`, `layers.svg` beside the
    probe shows the error by layer.

    Example: `lengthwise train-probe build/states --layer auto --out build/probe`
    """
    from rich.console import Console

    from lengthwise.cli.output import ConsoleProgress, print_json
    from lengthwise.errors import missing_extra
    from lengthwise.probe.states import open_states

    with ConsoleProgress() as progress:
        progress.stage("reading the states")
        found = open_states(states)
        layers = parse_layers(layer)
        try:
            from lengthwise.probe.training import train_probe as train
            from lengthwise.probe.training import write_layer_plot
        except ImportError as error:
            if (error.name or "").split(".")[0] != "torch":
                raise
            raise missing_extra("torch", "probe") from None
        progress.stage("training", total=100)
        _, report = train(
            found,
            out,
            layers=layers,
            bins=bins.value,
            count=count,
            seed=seed,
            progress=lambda stage, part: progress.advance(int(100 * part), f"% {stage}"),
        )
        if report.by_layer:
            write_layer_plot(report.by_layer, report.model, out / "layers.svg")
    if json:
        print_json(report.as_dict())
    else:
        show(report, out, Console(highlight=False, soft_wrap=True))


def parse_layers(text: str) -> list[int] | None:
    """The layers that an option names; None for `auto`.

    Raises:
        InputError: neither `auto` nor distinct numbers.
    """
    from lengthwise.errors import InputError

    if text == "auto":
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() for part in parts) or len(set(parts)) < len(parts):
        raise InputError(f"--layer {text}: give auto, a number, or distinct numbers such as 2,4")
    return [int(part) for part in parts]


def show(report: Report, out: Path, console: Console) -> None:
    """The figures as tables."""
    layers = ", ".join(map(str, report.layers))
    console.print(
        f"{out}: layer {layers} of {report.model}, {len(report.edges) - 1} {report.bins} bins up "
        f"to {report.edges[-1]:g} tokens, prompt by {report.pooling}"
    )
    console.print(
        f"trained on {report.train_requests:,} answers, tested on {report.test_requests:,} others "
        f"with {report.test_states:,} tokens; mean absolute errors in tokens:"
    )
    console.print(_method_table(report))
    if report.by_layer:
        console.print(
            _table(
                ("Layer", "Validation", "Test (95 % interval)"),
                [
                    (
                        f"{each.layer}",
                        f"{each.mae_valid:.1f}",
                        f"{each.mae_raw:.1f}",
                    )
                    for each in report.by_layer
                ],
            )
        )
    console.print(
        _table(
            ("Age", "To come", "Prompt only", "Prompt and age", "Raw", "Refined"),
            [
                (
                    f"{each.age_from}–{each.age_to}",
                    f"{each.mean_remaining:.0f}",
                    f"{each.mae_prompt_only:.1f}",
                    f"{each.mae_reestimated:.1f}",
                    f"{each.mae_raw:.1f}",
                    f"{each.mae_refined:.1f}",
                )
                for each in report.by_age_decile
            ],
        )
    )
    console.print(f"80 % intervals hold {report.coverage_80:.0%} of test tokens")
    dropped = report.dropped_states, report.dropped_requests
    if any(dropped):
        console.print(
            f"left out because they are not finite: {dropped[0]:,} states, {dropped[1]:,} requests"
        )


def _method_table(report: Report) -> Table:
    rows = [
        (name, f"{mae:.1f}", f"{times:.2f}")
        for name, mae, times in (
            ("Prompt only, counted down", report.mae_prompt_only, report.ratio_prompt_only),
            ("Prompt and age", report.mae_reestimated, report.ratio_reestimated),
            ("Probe, raw", report.mae_raw, report.ratio_raw),
        )
    ]
    rows.append(("Probe, refined as published", f"{report.mae_published_filter:.1f}", ""))
    rows.append(("Probe, refined", f"{report.mae_refined:.1f}", ""))
    return _table(("Estimate", "Error (95 % interval)", "Times the refined"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    from rich.table import Table

    table = Table(*heads)
    for row in rows:
        table.add_row(*row)
    return table
