"""`lengthwise inspect`: how a file would be read, and what could be learnt from it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.cli.options import (
    JsonOption,
    PromptsOption,
    QuotesOption,
    TurnsOption,
    refuse_given,
)
from lengthwise.workload.conversation import Turns

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.table import Table


def inspect(
    context: typer.Context,
    file: Annotated[
        Path, typer.Argument(help="A data set, a log or a trace; or a folder that holds a trace.")
    ],
    turns: TurnsOption = Turns.ALL,
    quotes: QuotesOption = False,
    prompts: PromptsOption = None,
    block_tokens: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a block in a trace's hash_ids.")
    ] = None,
    answer_tokens: Annotated[
        int | None, typer.Option(min=1, help="How long answers are, where a trace does not say.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Say how a file would be read: its layout, its rows, what is learnt from, what is left out.

    A file may be two things at once: prompts with answers for `train` and `evaluate`, and a trace
    for `simulate`. It is read from beginning to end, without being held in memory.

    Example: `lengthwise inspect ShareGPT_V3_unfiltered_cleaned_split.json`
    """
    from functools import partial

    from rich.console import Console

    from lengthwise.cli.output import ConsoleProgress, print_json
    from lengthwise.errors import InputError
    from lengthwise.predict.extract import prompt_counter
    from lengthwise.predict.tokenizer import REFERENCE
    from lengthwise.workload.inspection import inspect_prompts, inspect_trace
    from lengthwise.workload.records import UnknownLayoutError, UnusableError

    if file.is_dir():
        refuse_given(
            context,
            ("--turns", "--quotes", "--prompts"),
            "is for a file of prompts and answers, and a folder is a trace: leave it out",
        )
    found: dict[str, Any] = {"file": str(file), "prompts": None, "trace": None}
    unknown: list[str] = []
    refused: list[str] = []
    readers: dict[str, Callable[..., dict[str, Any]]] = {
        "prompts": partial(inspect_prompts, turns=turns, quotes=quotes, prompts=prompts),
        "trace": partial(
            inspect_trace,
            block_tokens=block_tokens,
            answer_tokens=answer_tokens,
            count_prompt=prompt_counter(REFERENCE),
        ),
    }
    with ConsoleProgress() as progress:
        for part, read in readers.items():
            if part == "prompts" and file.is_dir():
                continue
            progress.stage(f"reading {file.name} as {_NAMES[part]}")
            try:
                found[part] = read(file, progress=progress.advance)
            except UnknownLayoutError as error:
                unknown.append(str(error))
            except UnusableError as error:
                found[part] = {
                    "layout": error.layout,
                    "source": error.source,
                    "rows": 0,
                    "missing": str(error),
                }
            except InputError as error:
                refused.append(str(error))
    found["notes"] = refused
    if not (found["prompts"] or found["trace"]):
        # What was recognised and cannot be read says more than what was not recognised.
        raise InputError("; ".join(dict.fromkeys(refused or unknown)))
    for told in filter(None, (found["prompts"], found["trace"])):
        told["source"] = _without_links(told["source"])
    if json:
        print_json(found)
        return
    console = Console(highlight=False, soft_wrap=True)
    for part, heading in _NAMES.items():
        if found[part]:
            console.print(_table(f"As {heading}", found[part]))
    for refusal in refused:
        console.print(f"not as the other: {refusal}", markup=False)


_NAMES = {"prompts": "prompts with answers", "trace": "a trace"}
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


def _without_links(text: str) -> str:
    """Markdown's `[name](address)` as `name (address)`."""
    return re.sub(r"\[([^]]*)\]\(([^)]*)\)", r"\1 (\2)", text)


def _table(title: str, values: dict[str, Any]) -> Table:
    from rich.table import Table

    table = Table(title=title, show_header=False, title_justify="left", box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if isinstance(value, dict):
            for row in _rows(name, value):
                table.add_row(*row)
        elif isinstance(value, list):
            for each in value:
                is_row = isinstance(each, dict)
                table.add_row(
                    f"  row {each['row']}" if is_row else "",
                    str(each["reason"]) if is_row else str(each),
                )
        elif value not in (None, 0, ""):
            table.add_row(_SHOWN.get(name, name.replace("_", " ").capitalize()), _number(value))
    return table


def _rows(name: str, values: dict[str, Any]) -> list[tuple[str, str]]:
    if not values:
        return []
    if name == "left_out":
        return [(f"Left out: {reason}", _number(count)) for reason, count in values.items()]
    title = _SHOWN.get(name, name.replace("_", " ").capitalize())
    return [(title, ", ".join(f"{key} {_number(value)}" for key, value in values.items()))]


def _number(value: Any) -> str:
    if isinstance(value, bool):
        return "yes"
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1_000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
