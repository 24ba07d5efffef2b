"""`lengthwise evaluate`: how well a predictor orders and estimates answers it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lengthwise.cli.options import (
    AnswerColumnOption,
    DatasetArgument,
    JsonOption,
    LengthColumnOption,
    PromptColumnOption,
    PromptsOption,
    SkipMalformedOption,
    SplitOption,
    TurnsOption,
    WhereOption,
    refuse_given,
)
from lengthwise.workload.conversation import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lengthwise.cli.output import ConsoleProgress
    from lengthwise.predict.ablation import Ablated, Transferred
    from lengthwise.predict.prediction import Predictor
    from lengthwise.predict.tokenizer import PromptTokenizer
    from lengthwise.workload.dataset import Dataset


def evaluate(
    context: typer.Context,
    predictor: Annotated[
        str,
        typer.Argument(
            help="Folder made by `lengthwise train`, or `prompt-length`, `noisy-oracle:TAU`, …."
        ),
    ],
    dataset: DatasetArgument = None,
    split: SplitOption = None,
    where: WhereOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    prompt_column: PromptColumnOption = None,
    length_column: LengthColumnOption = None,
    answer_column: AnswerColumnOption = None,
    turns: TurnsOption = Turns.ALL,
    prompts: PromptsOption = None,
    skip_malformed: SkipMalformedOption = False,
    tokenizer: Annotated[
        str | None,
        typer.Option(
            help="Model whose tokenizer the server uses; default: the one it was trained with."
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw how true its lengths and quantiles are: .svg, .png or .pdf."),
    ] = None,
    ablation: Annotated[
        str | None,
        typer.Option(
            help="Instead, train anew on the table's train rows without a part, or with another: "
            "backbone, features, list-size, rows, or several, as in `features,list-size`."
        ),
    ] = None,
    across: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,…",
            help="Instead of one table several, each a path or PATH:COLUMN=VALUE: how predictors "
            "trained on one do on the others.",
        ),
    ] = None,
    backbone: Annotated[
        list[str] | None,
        typer.Option(
            help="Pretrained model for `--ablation backbone`; may be given again. Default: the "
            "built-in one, which is small and needs no network."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For the bootstrap.")] = 0,
    json: JsonOption = False,
) -> None:
    """Measure a predictor on rows that it was not trained on.

    Kendall's tau-b with a 95 % bootstrap interval says how well it orders; beside it stand the tau
    of the prompt's length alone, and the ceiling where the table has several answers per prompt.
    Tables follow by task and by length, and of what its lengths and quantiles are worth.

    With `--across`, the predictor is asked about the test rows of several tables, and so are
    others, trained by its recipe on each table's train rows, all or a few: the transfer matrix.

    With `--ablation`, its recipe is varied and trained anew on the rows of the split `train`; tau
    is given on `valid`, to choose by, and on the split that is asked for, to report.

    Example: `lengthwise evaluate build/p prompts.parquet --split test`
    """
    import dataclasses

    from rich.console import Console

    from lengthwise.cli.output import ConsoleProgress, print_json
    from lengthwise.errors import InputError
    from lengthwise.predict.evaluate import (
        ablation_table,
        evaluation_table,
        parts_table,
        plot_calibration,
        require_picture,
    )
    from lengthwise.predict.evaluate import evaluate as evaluate_predictor
    from lengthwise.predict.load import load_predictor
    from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer
    from lengthwise.workload.dataset import load_dataset, parse_where

    if (dataset is None) == (across is None):
        raise InputError("give a table of prompts and answers, or several with --across A,B")
    if across is not None:
        refuse_given(
            context,
            ("--split", "--ablation", "--plot"),
            "does not go with --across, which asks about the test rows of each table",
        )
    if ablation is not None:
        refuse_given(context, ["--plot"], "does not go with --ablation: leave one of them out")
    if plot is not None:
        require_picture(plot)
    if "backbone" not in (ablation or "").split(","):
        refuse_given(context, ["--backbone"], "is for an ablation: add --ablation backbone")
    with ConsoleProgress() as progress:
        progress.stage("reading the predictor and the table")
        loaded = load_predictor(predictor, tokenizer)
        metadata = getattr(loaded, "metadata", None)
        name = tokenizer or (metadata.tokenizer if metadata is not None else REFERENCE)
        encoder = load_tokenizer(name)

        def read(
            path: Path, split: str | None, limit: int | None, conditions: dict[str, str]
        ) -> Dataset:
            table = load_dataset(
                path,
                prompt_column=prompt_column,
                length_column=length_column,
                answer_column=answer_column,
                split=split,
                where={**parse_where(where), **conditions},
                limit=limit,
                count_tokens=encoder.count_tokens,
                turns=turns,
                prompts=prompts,
                quotes=True,
                refuses=encoder.refuses,
                progress=progress.advance,
            )
            if not skip_malformed:
                table.refuse_rejected()
            for line in table.account():
                progress.note(line)
            if table.holding_answers:
                progress.note(
                    f"warning: {table.holding_answers:,} of {len(table.prompts):,} prompts hold "
                    "their own answers: how well lengths are told there says little of serving, "
                    "where no prompt does"
                )
            return table

        if across is not None:
            from lengthwise.predict.ablation import transfer_matrix

            def trained(done: int, total: int, what: str) -> None:
                if done == 0:
                    progress.stage("training on each")
                progress.note(f"{done + 1} of {total}: {what}")

            matrix = transfer_matrix(
                predictor, loaded, across.split(","), read, encoder, limit, seed, trained
            )
            _print_matrix(matrix, predictor, json)
            return
        assert dataset is not None
        path = dataset

        def rows_of(split: str | None, limit: int | None) -> Dataset:
            return read(path, split, limit, {})

        table = rows_of(split, limit)
        head = {
            "predictor": predictor,
            "dataset": table.name,
            "selection": table.selection,
            "model": table.model,
            "layout": table.layout,
            "rejected_rows": len(table.rejected),
            "left_out": dict(table.left_out),
            "prompts_with_own_answer": table.holding_answers,
        }
        if ablation is not None:
            ablated = _ablate(
                ablation.split(","),
                loaded,
                (split, table),
                rows_of,
                encoder,
                backbone or (),
                seed,
                progress,
            )
        else:
            progress.stage("predicting", total=len(table.prompts))
            evaluation = evaluate_predictor(
                loaded, table, encoder, seed=seed, progress=progress.advance
            )
            if plot is not None:
                plot_calibration(evaluation.calibration, plot)
    console = Console(highlight=False)
    if ablation is not None:
        if json:
            rows = [dataclasses.asdict(each) for each in ablated]
            for row in rows:
                row["taus"] = {name: tau._asdict() for name, tau in row["taus"].items()}
            print_json({**head, "ablation": rows})
        else:
            console.print(ablation_table(ablated))
    elif json:
        kind = (
            {}
            if metadata is None
            else {name: getattr(metadata, name) for name in ("kind", "loss", "bucket")}
        )
        print_json({**head, **kind, **dataclasses.asdict(evaluation)})
    else:
        console.print(evaluation_table(evaluation))
        console.print(parts_table("By task", evaluation.tau_by_task))
        console.print(parts_table("By true length, tokens", evaluation.tau_by_decile))
        console.print(parts_table("By expected length, tokens", evaluation.calibration))


def _ablate(
    names: Sequence[str],
    loaded: Predictor,
    reported: tuple[str | None, Dataset],
    rows_of: Callable[[str | None, int | None], Dataset],
    encoder: PromptTokenizer,
    backbones: Sequence[str],
    seed: int,
    progress: ConsoleProgress,
) -> list[Ablated]:
    """Vary a predictor's recipe; train on its number of rows of the split `train`."""
    from lengthwise.errors import InputError
    from lengthwise.predict.ablation import ablate
    from lengthwise.predict.kinds import recipe_of

    metadata = getattr(loaded, "metadata", None)
    if metadata is None:
        raise InputError(
            f"{loaded.name} learns nothing, so there is nothing to leave out: "
            "give a folder written by lengthwise train --out DIR"
        )
    split, table = reported
    if split in (None, "train"):
        raise InputError(
            "--ablation trains on the split train and chooses by the split valid: "
            "say with --split which other one to report, for example --split test"
        )
    progress.stage("training again and again")
    return ablate(
        names,
        recipe_of(metadata),
        rows_of("train", metadata.training.rows),
        {"valid": table if split == "valid" else rows_of("valid", None), str(split): table},
        encoder,
        backbones=backbones,
        seed=seed,
        progress=lambda done, total, what: progress.note(f"{done + 1} of {total}: {what}"),
    )


def _print_matrix(found: Sequence[Transferred], name: str, json: bool) -> None:
    """The transfer matrix as JSON, or as a table with a row for each predictor."""
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    from lengthwise.cli.output import print_json
    from lengthwise.predict.evaluate import shown_interval

    if json:
        rows = [dataclasses.asdict(each) for each in found]
        for row in rows:
            row["taus"] = {name: tau._asdict() for name, tau in row["taus"].items()}
        print_json({"predictor": name, "across": rows})
        return
    sets = list(found[0].taus)
    table = Table("trained on", "rows", *(f"tau, asked about {name}" for name in sets))
    for each in found:
        taus = (shown_interval(each.taus[name]) for name in sets)
        table.add_row(each.trained_on, f"{each.rows:,}", *taus)
    Console(highlight=False).print(table)
