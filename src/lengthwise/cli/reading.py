"""Options of the verbs that read prompts with answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lengthwise.workload.conversation import Turns

TurnsOption = Annotated[
    Turns, typer.Option(help="Of a conversation: which of its answers are rows.")
]
QuotesOption = Annotated[
    bool,
    typer.Option("--quotes", help="Keep prompts that hold their own answers: they are quoted."),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(help="The file of the prompts, where the answers' file has none."),
]
