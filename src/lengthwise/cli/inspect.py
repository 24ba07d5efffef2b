"""`lengthwise inspect`: how a file would be read, and what could be learnt from it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.workload.conversation import Turns

if TYPE_CHECKING:
    from rich.table import Table


def inspect(
    file: Annotated[
        Path, typer.Argument(help="A data set, a log or a trace; or a folder that holds a trace.")
    ],
    turns: Annotated[
        Turns, typer.Option(help="Of a conversation: which of its answers are rows.")
    ] = Turns.ALL,
    quotes: Annotated[
        bool,
        typer.Option("--quotes", help="Keep prompts that hold their own answers: they are quoted."),
    ] = False,
    prompts: Annotated[
        Path | None,
        typer.Option(help="The file of the prompts, where the answers' file has none."),
    ] = None,
    block_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a block in a trace's hash_ids.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")] = False,
) -> None:
    """Say how a file would be read: its layout, its rows, what is learnt from, what is left out.

    A file may be two things at once: prompts with answers for `train` and `evaluate`, and a trace
    for `simulate`. It is read from beginning to end, without being held in memory.

    Example: `lengthwise inspect ShareGPT_V3_unfiltered_cleaned_split.json`
    """
    import json as json_module

    from rich.console import Console

    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.errors import InputError
    from lengthwise.workload.inspection import inspect_prompts, inspect_trace

    found: dict[str, Any] = {"file": str(file)}
    refusals: list[str] = []
    with ConsoleProgress() as progress:
        progress.stage(f"reading {file.name}")
        if not file.is_dir():
            try:
                found["prompts"] = inspect_prompts(
                    file, turns=turns, quotes=quotes, prompts=prompts, progress=progress.advance
                )
            except InputError as error:
                refusals.append(str(error))
        try:
            found["trace"] = inspect_trace(
                file, block_tokens=block_tokens, progress=progress.advance
            )
        except InputError as error:
            refusals.append(str(error))
    if len(found) == 1:
        raise InputError("; and as a trace: ".join(refusals))
    found["notes"] = refusals
    if json:
        print(json_module.dumps(found, indent=2, ensure_ascii=False))
        return
    console = Console(highlight=False, soft_wrap=True)
    for part in ("prompts", "trace"):
        if part in found:
            console.print(_table(part, found[part]), markup=False)
    for refusal in refusals:
        console.print(
            f"not as {'prompts' if 'trace' in found else 'a trace'}: {refusal}", markup=False
        )


_SHOWN = {
    "layout": "Layout",
    "source": "  from",
    "records": "Rows in the file",
    "rows": "Usable",
    "prompt": "Prompt",
    "answer": "Answer",
    "conversations": "  of conversations",
    "with_attachments": "  with images or other attachments",
    "with_tool_calls": "  after tool calls",
}


def _table(part: str, values: dict[str, Any]) -> Table:
    from rich.table import Table

    heads = {"prompts": "As prompts with answers", "trace": "As a trace"}
    table = Table(title=heads[part], show_header=False, title_justify="left")
    for name, value in values.items():
        if isinstance(value, dict):
            for row in _rows(name, value):
                table.add_row(*row)
        elif isinstance(value, list):
            for each in value:
                table.add_row(f"  row {each['row']}", str(each["reason"]))
        elif value not in (None, 0, ""):
            table.add_row(_SHOWN.get(name, name.replace("_", " ")), _number(value))
    return table


def _rows(name: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    if name == "left_out":
        return [(f"Left out: {reason}", _number(count)) for reason, count in values.items()]
    title = name.replace("_", " ")
    return [(title, ", ".join(f"{key} {_number(value)}" for key, value in values.items()))]


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
