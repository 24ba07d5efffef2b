"""`lengthwise evaluate`: how well a predictor orders and estimates answers it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from lengthwise.predict.evaluate import Evaluation


def evaluate(
    predictor: Annotated[
        str,
        typer.Argument(
            help="Folder made by `lengthwise train`, or `prompt-length`, `noisy-oracle:TAU`, …."
        ),
    ],
    dataset: Annotated[
        Path,
        typer.Argument(help="Table of prompts and answer lengths: .parquet, .jsonl or .csv."),
    ],
    split: Annotated[
        str | None, typer.Option(help="Only rows whose column `split` has it.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; may be given again.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompts.")] = None,
    length_column: Annotated[
        str | None, typer.Option(help="Column of the answers' lengths in tokens.")
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option(help="Column of the answers' texts, where lengths are missing.")
    ] = None,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Leave malformed rows out, and say how many.")
    ] = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Model whose tokenizer the server uses; default: the one it was trained with."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For the bootstrap.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")] = False,
) -> None:
    """Measure a predictor on rows that it was not trained on.

    Kendall's tau-b with a 95 % bootstrap interval says how well it orders; beside it stand the tau
    of the prompt's length alone, and the ceiling where the table has several answers per prompt.

    Example: `lengthwise evaluate build/p prompts.parquet --split test`
    """
    import dataclasses
    import json as json_module
    import math

    from rich.console import Console

    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.cli.train import parse_where
    from lengthwise.predict.evaluate import evaluate as evaluate_predictor
    from lengthwise.predict.load import load_predictor
    from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer
    from lengthwise.workload.dataset import load_dataset

    with ConsoleProgress() as progress:
        progress.stage("reading the predictor and the table")
        loaded = load_predictor(predictor, tokenizer)
        metadata = getattr(loaded, "metadata", None)
        name = tokenizer or (metadata.tokenizer if metadata is not None else REFERENCE)
        encoder = load_tokenizer(name)
        table = load_dataset(
            dataset,
            prompt_column=prompt_column,
            length_column=length_column,
            answer_column=answer_column,
            split=split,
            where=parse_where(where),
            limit=limit,
            count_tokens=encoder.count_tokens,
        )
        if not skip_malformed:
            table.refuse_rejected()
        progress.stage("predicting", total=len(table.prompts))
        evaluation = evaluate_predictor(
            loaded, table, encoder, seed=seed, progress=progress.advance
        )
        if table.rejected:
            progress.note(f"left out {len(table.rejected)} malformed rows")
    if json:
        values = {
            key: None if isinstance(value, float) and math.isnan(value) else value
            for key, value in dataclasses.asdict(evaluation).items()
        }
        print(
            json_module.dumps(
                {
                    "predictor": predictor,
                    "dataset": table.name,
                    "selection": table.selection,
                    "model": table.model,
                    "rejected_rows": len(table.rejected),
                    **values,
                },
                indent=2,
            )
        )
    else:
        Console(highlight=False).print(_as_table(evaluation))


def _as_table(evaluation: Evaluation) -> Table:
    """The figures with what they mean."""
    from rich.table import Table

    def tau(value: float | None) -> str:
        return "undefined" if value is None else f"{value:.3f}"

    table = Table(show_header=False)
    table.add_row("Rows", f"{evaluation.rows:,}")
    if evaluation.unpredicted:
        table.add_row("Rows without a prediction", f"{evaluation.unpredicted:,}")
    table.add_row(
        "Kendall tau-b (95 % interval)",
        f"{tau(evaluation.tau)} ({tau(evaluation.tau_low)} to {tau(evaluation.tau_high)})",
    )
    table.add_row("  prompt length alone", tau(evaluation.prompt_length_tau))
    if evaluation.ceiling_tau is not None:
        table.add_row("  ceiling: mean of the other answers", tau(evaluation.ceiling_tau))
        table.add_row("  one other answer", tau(evaluation.resample_tau))
    table.add_row("Mean absolute error of the mean", f"{evaluation.mae:.1f} tokens")
    table.add_row("Mean absolute error of the median", f"{evaluation.mae_median:.1f} tokens")
    table.add_row(
        "Mean length, predicted and true",
        f"{evaluation.mean_expected:.1f}, {evaluation.mean_length:.1f} tokens",
    )
    table.add_row(
        "Answers from the 10 % to the 90 % quantile",
        f"{evaluation.coverage_80:.1%} ({evaluation.below_low:.1%} below, "
        f"{evaluation.above_high:.1%} above)",
    )
    table.add_row(
        "Time per prompt, median and p99",
        f"{evaluation.microseconds_per_prompt:.0f} µs, {evaluation.microseconds_p99:.0f} µs",
    )
    return table
