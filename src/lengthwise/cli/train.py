"""`lengthwise train`: learn a predictor of answer lengths from a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lengthwise.cli.options import (
    AnswerColumnOption,
    DatasetArgument,
    JsonOption,
    LengthColumnOption,
    PromptColumnOption,
    PromptsOption,
    QuotesOption,
    SkipMalformedOption,
    SplitOption,
    TurnsOption,
    WhereOption,
    refuse_given,
)
from lengthwise.predict.encoder import Head, Precision
from lengthwise.workload.conversation import Turns

if TYPE_CHECKING:
    from lengthwise.cli.output import ConsoleProgress
    from lengthwise.predict.kinds import Recipe, TrainedPredictor
    from lengthwise.predict.lexical import LexicalPredictor


#: what says how to read a table
_OF_TABLES: Final = (
    "--split",
    "--where",
    "--prompt-column",
    "--length-column",
    "--answer-column",
    "--turns",
    "--quotes",
    "--prompts",
    "--skip-malformed",
    "--tokenizer",
)


def train(
    context: typer.Context,
    out: Annotated[Path, typer.Option(help="Folder to write the predictor to.")],
    dataset: DatasetArgument = None,
    from_log: Annotated[
        Path | None,
        typer.Option(help="Learn from what `lengthwise serve --log DIR` logged, not from a table."),
    ] = None,
    split: SplitOption = None,
    where: WhereOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many rows; the newest of a log.")
    ] = None,
    prompt_column: PromptColumnOption = None,
    length_column: LengthColumnOption = None,
    answer_column: AnswerColumnOption = None,
    turns: TurnsOption = Turns.ALL,
    quotes: QuotesOption = False,
    prompts: PromptsOption = None,
    skip_malformed: SkipMalformedOption = False,
    tokenizer: Annotated[
        str,
        typer.Option(
            help="Model whose tokenizer the server will use: a folder, a hub name, or `reference`."
        ),
    ] = "reference",
    kind: Annotated[
        str, typer.Option(help="What is learnt: lexical, encoder, classify, regress or quantile.")
    ] = "lexical",
    loss: Annotated[
        str | None,
        typer.Option(help="What training lowers: listmle, listnet, pairwise; default: the kind's."),
    ] = None,
    bucket: Annotated[
        int | None,
        typer.Option(help="Tokens; lengths in one bucket count as equal. Default: the kind's."),
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option(
            help="Pretrained model to fine-tune: a folder or a hub name such as facebook/opt-125m. "
            "For kinds encoder, classify and regress."
        ),
    ] = None,
    head: Annotated[
        Head, typer.Option(help="What of the backbone is looked at: its last token, or the mean.")
    ] = Head.LAST,
    precision: Annotated[
        Precision, typer.Option(help="In which the backbone predicts: fp32, bf16 or int8.")
    ] = Precision.FP32,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Of the backbone's fine-tuning.", show_default="5")
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(min=1e-9, help="Of the backbone's fine-tuning.", show_default="2e-5"),
    ] = None,
    list_size: Annotated[
        int | None,
        typer.Option(min=2, help="Prompts of a mini-batch, one list to ranking losses."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="For folds, lists and tie-breaks.")] = 0,
    json: JsonOption = False,
) -> None:
    """Learn from past answers how long the next ones will be.

    The file has prompts with the lengths of their answers, or with their texts, which are counted,
    or whole conversations, of which every answer is a row: ShareGPT and other published layouts are
    read as they are, packed with .gz or .zst or not; `lengthwise inspect FILE` says how. Give the
    answers of the very model that will be served. Takes seconds; with `--backbone`, which
    fine-tunes a pretrained model, minutes on a GPU and hours on few cores.

    With `--from-log` it learns from hashed features that a server logged; no table is needed, and
    no tokenizer, as the log has what it takes.

    Example: `lengthwise train prompts.parquet --split train --limit 10000 --out build/p`
    """
    from rich.console import Console

    from lengthwise.cli.output import ConsoleProgress
    from lengthwise.errors import InputError
    from lengthwise.predict.kinds import Recipe, kind_named
    from lengthwise.predict.tokenizer import load_tokenizer
    from lengthwise.predict.train import train as train_predictor
    from lengthwise.workload.dataset import load_dataset, parse_where

    if (dataset is None) == (from_log is None):
        raise InputError("give a table of prompts and answer lengths, or --from-log DIR")
    if from_log is not None:
        refuse_given(
            context,
            _OF_TABLES,
            "is for a table: a log has features instead of prompts, and knows its tokenizer; "
            "leave it out",
        )
    if backbone is None:
        refuse_given(
            context,
            ("--head", "--precision", "--epochs", "--learning-rate"),
            "is for the fine-tuning of a pretrained model: add --backbone, or leave it out",
        )
    recipe = kind_named(kind).complete(
        Recipe(
            kind,
            loss,
            bucket,
            list_size,
            seed=seed,
            backbone=backbone,
            head=head,
            precision=precision,
            epochs=epochs,
            learning_rate=learning_rate,
        )
    )
    with ConsoleProgress() as progress:

        def report(stage: str, part: float) -> None:
            progress.advance(int(100 * part), f"% {stage}")

        if dataset is None:
            assert from_log is not None
            predictor: TrainedPredictor = _train_from_log(from_log, limit, recipe, progress, report)
            predictor.save(out)
        else:
            progress.stage("reading the table")
            encoder = load_tokenizer(tokenizer)
            table = load_dataset(
                dataset,
                prompt_column=prompt_column,
                length_column=length_column,
                answer_column=answer_column,
                split=split,
                where=parse_where(where),
                limit=limit,
                count_tokens=encoder.count_tokens,
                turns=turns,
                prompts=prompts,
                quotes=quotes,
                refuses=encoder.refuses,
                progress=progress.advance,
            )
            if not skip_malformed:
                table.refuse_rejected()
            progress.stage("training", total=100)
            predictor = train_predictor(table, encoder, recipe, progress=report)
            predictor.save(out)
            for line in table.account():
                progress.note(line)
    if json:
        print(predictor.metadata.model_dump_json(indent=2, by_alias=True))
        return
    training, held_out = predictor.metadata.training, predictor.metadata.held_out
    tau = "undefined" if held_out.tau is None else f"{held_out.tau:.3f}"
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"{out}: trained on {training.rows:,} prompts in {training.seconds:.1f} s")
    console.print(
        f"held out within them: tau {tau}, mean absolute error {held_out.mae:.0f} tokens, "
        f"{held_out.coverage_80:.0%} of answers between the 10 % and 90 % quantile"
    )


def _train_from_log(
    log: Path,
    limit: int | None,
    recipe: Recipe,
    progress: ConsoleProgress,
    report: Callable[[str, float], None],
) -> LexicalPredictor:
    """A predictor learnt from a length log, and what was left out of it."""
    from collections import Counter

    from lengthwise.predict.train import train_on_features, training_rows
    from lengthwise.workload.length_log import read_answers

    progress.stage(f"reading {log}")
    answers, reader = read_answers(log)
    damaged = reader.damaged + reader.unfinished
    rows = training_rows(log, answers[-limit:] if limit else answers, damaged)
    for name, why in reader.unreadable.items():
        progress.note(f"left out {name}: {why}")
    reasons = Counter(rejection.reason for rejection in rows.dataset.rejected)
    for reason, count in reasons.items():
        progress.note(f"left out {count:,} answers: {reason}")
    progress.stage("training", total=100)
    return train_on_features(*rows, recipe, progress=report)
