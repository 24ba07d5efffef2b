"""`lengthwise check`: look at settings before a server starts with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lengthwise.cli.options import JsonOption


def check(
    settings: Annotated[
        list[Path], typer.Argument(help="Settings files.", show_default=False, metavar="FILE...")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            help="The model that will be served: predictor and probe are checked against it."
        ),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(help="The probe that will be read: `serve --probe`.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say whether a server would take settings up, and what of them is dangerous.

    Nothing is started and nothing written: it takes a second. One line for each thing found. The
    exit code is 0 where all is well, 1 where something is dangerous (a server would take it up),
    and 2 where a server would refuse it.

    Example: `lengthwise check settings.json && mv settings.json /etc/lengthwise/`
    """
    from lengthwise.cli.output import print_json
    from lengthwise.serve.settings_check import check_settings, worst

    found = {path: check_settings(path, model, probe) for path in settings}
    code = max(map(worst, found.values()))
    if json:
        print_json(
            {
                str(path): [{"verdict": each.verdict, "says": each.says} for each in findings]
                for path, findings in found.items()
            },
            pretty=False,
        )
    else:
        for path, findings in found.items():
            for each in findings:
                print(f"{path}: {each.verdict}: {each.says}")
    raise typer.Exit(code)
