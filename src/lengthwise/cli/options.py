"""Options that several verbs share, and those that nothing would look at: refused, not ignored."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from lengthwise.errors import InputError
from lengthwise.workload.conversation import Turns


def refuse_given(context: typer.Context, options: Iterable[str], because: str) -> None:
    """Raise an InputError if the command line gives one of these options, whatever its value.

    Args:
        context: of the verb.
        options: as users write them, such as `--learn-every`.
        because: why they cannot be, and what to do.
    """
    names = {name: each.name for each in context.command.params for name in each.opts}
    for option in options:
        source = context.get_parameter_source(names[option] or "")
        if source is not None and source.name != "DEFAULT":
            raise InputError(f"{option} {because}")


DatasetArgument = Annotated[
    Path | None,
    typer.Argument(help="Prompts and answers, in any layout that `lengthwise inspect` knows."),
]
LengthColumnOption = Annotated[
    str | None,
    typer.Option(help="Column of the answers' lengths in tokens; several answers': A,B."),
]
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
PredictorOption = Annotated[
    str | None,
    typer.Option(
        help="Folder made by `lengthwise train`, or `declared`, `prompt-length`.",
        show_default="declared",
    ),
]
IntervalOption = Annotated[
    int | None,
    typer.Option(
        min=1, help="Steps from one prediction of the probe to the next.", show_default="8"
    ),
]
SettingsOption = Annotated[
    Path | None,
    typer.Option(help="Your own settings file, watched while serving; made if missing."),
]
LogOption = Annotated[
    Path | None,
    typer.Option(help="Folder for a log of hashed prompt features and answer lengths; no prompts."),
]
LogTextOption = Annotated[
    bool, typer.Option("--log-text", help="With --log: write the text of prompts as well.")
]
LearnOption = Annotated[
    bool,
    typer.Option(
        "--learn",
        help="With --log: train predictors from it in the background, and exchange the "
        "present one for a better one.",
    ),
]
LearnEveryOption = Annotated[
    int, typer.Option(min=40, help="With --learn: new answers between two trainings.")
]
SplitOption = Annotated[str | None, typer.Option(help="Only rows whose column `split` has it.")]
WhereOption = Annotated[
    list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; may be given again.")
]
PromptColumnOption = Annotated[str | None, typer.Option(help="Column of the prompts.")]
AnswerColumnOption = Annotated[
    str | None, typer.Option(help="Column of the answers' texts, where lengths are missing.")
]
SkipMalformedOption = Annotated[
    bool, typer.Option("--skip-malformed", help="Leave malformed rows out, and say how many.")
]
JobsOption = Annotated[
    int | None, typer.Option(min=1, help="Processes at once; default: one a core.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")]
PresetModelOption = Annotated[
    str | None, typer.Option(help="With --gpu: a preset, such as `llama-3-8b`.")
]
GpuOption = Annotated[str | None, typer.Option(help="Such as `h100`, or `2xa100`.")]
SlotsOption = Annotated[int | None, typer.Option(min=1, help="Requests that run at once.")]
TokenBudgetOption = Annotated[int | None, typer.Option(min=1, help="Tokens a step.")]
KvBlocksOption = Annotated[
    int | None, typer.Option(min=1, help="KV blocks; default: what the GPU has, or ample.")
]
FirstRequestsOption = Annotated[
    int | None, typer.Option(min=1, help="Only the first so many requests.")
]
