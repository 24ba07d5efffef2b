"""`lengthwise evaluate`: how well a predictor orders and estimates answers it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lengthwise.cli.reading import PromptsOption, TurnsOption
from lengthwise.workload.conversation import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.table import Table

    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.predict.ablation import Ablated, Tau
    from lengthwise.predict.breakdown import Part
    from lengthwise.predict.evaluate import Evaluation
    from lengthwise.predict.prediction import Predictor
    from lengthwise.predict.tokenizer import PromptTokenizer
    from lengthwise.workload.dataset import Dataset


def evaluate(
    predictor: Annotated[
        str,
        typer.Argument(
            help="Folder made by `lengthwise train`, or `prompt-length`, `noisy-oracle:TAU`, …."
        ),
    ],
    dataset: Annotated[
        Path | None,
        typer.Argument(help="Prompts and answers, in any layout that `lengthwise inspect` knows."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Only rows whose column `split` has it.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="Only rows with COLUMN=VALUE; may be given again.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many rows.")] = None,
    prompt_column: Annotated[str | None, typer.Option(help="Column of the prompts.")] = None,
    length_column: Annotated[
        str | None,
        typer.Option(help="Column of the answers' lengths in tokens; several answers': A,B."),
    ] = None,
    answer_column: Annotated[
        str | None, typer.Option(help="Column of the answers' texts, where lengths are missing.")
    ] = None,
    turns: TurnsOption = Turns.ALL,
    prompts: PromptsOption = None,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Leave malformed rows out, and say how many.")
    ] = False,
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
    json: Annotated[bool, typer.Option("--json", help="Result as JSON on stdout.")] = False,
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

    from lengthwise.cli.across import print_matrix, transfer_matrix
    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.cli.train import note_left_out, parse_where
    from lengthwise.errors import InputError
    from lengthwise.predict.evaluate import evaluate as evaluate_predictor
    from lengthwise.predict.evaluate import plot_calibration
    from lengthwise.predict.load import load_predictor
    from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer
    from lengthwise.workload.dataset import load_dataset

    if (dataset is None) == (across is None):
        raise InputError("give a table of prompts and answers, or several with --across A,B")
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
            note_left_out(progress, table)
            if table.holding_answers:
                progress.note(
                    f"warning: {table.holding_answers:,} of {len(table.prompts):,} prompts hold "
                    "their own answers: how well lengths are told there says little of serving, "
                    "where no prompt does"
                )
            return table

        if across is not None:
            matrix = transfer_matrix(
                predictor, loaded, across.split(","), read, encoder, limit, seed, progress
            )
            print_matrix(matrix, predictor, json)
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
                table,
                split,
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
            console.print(_ablation_table(ablated))
    elif json:
        kind = (
            {}
            if metadata is None
            else {name: getattr(metadata, name) for name in ("kind", "loss", "bucket")}
        )
        print_json({**head, **kind, **dataclasses.asdict(evaluation)})
    else:
        console.print(_as_table(evaluation))
        console.print(_parts_table("By task", evaluation.tau_by_task))
        console.print(_parts_table("By true length, tokens", evaluation.tau_by_decile))
        console.print(_parts_table("By expected length, tokens", evaluation.calibration))


def _ablate(
    names: Sequence[str],
    loaded: Predictor,
    table: Dataset,
    split: str | None,
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


def print_json(values: dict[str, Any]) -> None:
    """JSON on stdout, with null for what is not a number."""
    import json
    import math

    def known(value: Any) -> Any:
        if isinstance(value, float) and math.isnan(value):
            return None
        if isinstance(value, dict):
            return {key: known(each) for key, each in value.items()}
        return [known(each) for each in value] if isinstance(value, list) else value

    print(json.dumps(known(values), indent=2, ensure_ascii=False))


def _tau(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _as_table(evaluation: Evaluation) -> Table:
    """The figures with what they mean."""
    from rich.table import Table

    table = Table(show_header=False)
    table.add_row("Rows", f"{evaluation.rows:,}")
    if evaluation.unpredicted:
        table.add_row("Rows without a prediction", f"{evaluation.unpredicted:,}")
    table.add_row("Kendall tau-b (95 % interval)", shown_interval(evaluation))
    table.add_row("  prompt length alone", _tau(evaluation.prompt_length_tau))
    if evaluation.ceiling_tau is not None:
        table.add_row("  ceiling: mean of the other answers", _tau(evaluation.ceiling_tau))
        table.add_row("  one other answer", _tau(evaluation.resample_tau))
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
        f"{evaluation.microseconds_p50:.0f} µs, {evaluation.microseconds_p99:.0f} µs",
    )
    for timed in evaluation.latency:
        if timed.batch > 1:
            table.add_row(
                f"Time of {timed.batch} at once, median and p99",
                f"{timed.microseconds_p50:,.0f} µs, {timed.microseconds_p99:,.0f} µs",
            )
    if evaluation.training_seconds is not None:
        table.add_row("Time to train", f"{evaluation.training_seconds:.1f} s")
    return table


def shown_interval(measured: Evaluation | Part | Tau) -> str:
    """A tau with its interval, where it has one."""
    if measured.tau_low is None:
        return _tau(measured.tau)
    return f"{_tau(measured.tau)} ({_tau(measured.tau_low)} to {_tau(measured.tau_high)})"


def _parts_table(title: str, parts: Sequence[Part]) -> Table:
    from rich.table import Table

    heads = "rows", "tau (95 % interval)", "expected", "true", "error", "below 10 %", "above 90 %"
    table = Table(title, *heads)
    for part in parts:
        table.add_row(
            part.name,
            f"{part.rows:,}",
            shown_interval(part),
            f"{part.mean_expected:.0f}",
            f"{part.mean_length:.0f}",
            f"{part.mae:.0f}",
            f"{part.below_low:.0%}",
            f"{part.above_high:.0%}",
        )
    return table


def _ablation_table(ablated: Sequence[Ablated]) -> Table:
    from rich.table import Table

    splits = list(ablated[0].taus)
    table = Table("ablation", "setting", "rows", *(f"tau, {name}" for name in splits), "seconds")
    for each in ablated:
        taus = (shown_interval(each.taus[name]) for name in splits)
        table.add_row(each.ablation, each.setting, f"{each.rows:,}", *taus, f"{each.seconds:.1f}")
    return table
