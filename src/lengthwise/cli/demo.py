"""`lengthwise demo`: a predictor, four policies and four loads, exactly; a burst of them live."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PRESET = "a100:llama-3-8b"


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, results and predictor.")] = Path(
        "demo"
    ),
    data: Annotated[
        Path | None,
        typer.Option(
            help="Real prompts and answer lengths, with a column `split`; without, the built-in "
            "model's prompts."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For prompts, training and arrivals.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """See it work: vLLM at the pace of an A100, and four ways to order its requests.

    Learns from prompts how long answers get and compares `fcfs`, `ltr`, `srpt` and an oracle on
    other prompts, below, at and above capacity and in a burst: exactly, in virtual time. Then an
    emulated server answers a burst over HTTP, beside its exact twin. Two minutes.

    Example: `lengthwise demo --out demo`
    """
    from lengthwise.cli.output import ConsoleProgress
    from lengthwise.cli.report import show_results
    from lengthwise.compare.demonstration import run_demo
    from lengthwise.simulate.presets import parse_preset

    with ConsoleProgress() as progress:
        run_demo(out, parse_preset(PRESET), data=data, seed=seed, progress=progress)
    show_results(out, json=json)
