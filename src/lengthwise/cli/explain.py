"""`lengthwise explain`: why a request waited."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from lengthwise.cli.options import JsonOption
from lengthwise.errors import InputError


def explain(
    target: Annotated[
        str,
        typer.Argument(
            help="The folder that the setting `journal` names, or the URL of a server that "
            "`lengthwise serve` started on this machine.",
            metavar="URL|JOURNAL",
            show_default=False,
        ),
    ],
    request: Annotated[
        str,
        typer.Argument(
            help="The id of its response, its `X-Request-Id` or its `lengthwise_id`.",
            metavar="ID",
            show_default=False,
        ),
    ],
    json: JsonOption = False,
) -> None:
    """Say why a request waited: its rank and tier, what was predicted, who overtook it, when it was
    paused or preempted, for how long and for whom.

    The server must keep a journal (the setting `journal`). It may run on meanwhile: the journal is
    a quarter of a second behind. A request that still waits is explained as far as it got.

    Example: `lengthwise explain http://localhost:8000 cmpl-8f0a6c`
    """
    from lengthwise.cli.output import print_json
    from lengthwise.serve.journal_reader import explain as explained
    from lengthwise.serve.journal_reader import in_words

    told = explained(_journal_of(target), request)
    if json:
        print_json(asdict(told), pretty=False)
    else:
        print("\n".join(in_words(told)))


def _journal_of(target: str) -> Path:
    if "://" not in target:
        return Path(target)
    from lengthwise.serve.whereabouts import settings_file
    from lengthwise.settings import read_settings

    path = settings_file(target)
    settings, _ = read_settings(path)
    if settings.journal is None:
        raise InputError(
            f"the server keeps no journal: set `journal` to a folder in {path}, and ask again "
            "about requests that come from then on"
        )
    return Path(settings.journal)
