"""`lengthwise demo`: everything once, on the built-in model, in under five minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report, results and predictor.")] = Path(
        "demo"
    ),
    seed: Annotated[int, typer.Option(min=0, help="For prompts, training and arrivals.")] = 0,
    port: Annotated[
        int | None, typer.Option(help="The server's port; default: a free one.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")] = False,
) -> None:
    """See it work: a real vLLM server, its own answers, and four ways to order them.

    Serves the built-in model, learns how long its answers get, and compares `fcfs`, `ltr`, `srpt`
    and an oracle on the same held-out requests, at once (a burst), at capacity and above it.

    Example: `lengthwise demo --out demo`
    """
    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.cli.report import show_results
    from lengthwise.compare.demo import run_demo

    with ConsoleProgress() as progress:
        run_demo(out, seed=seed, port=port, progress=progress)
    show_results(out, json=json)
