"""`lengthwise evaluate --across`: how predictors do on other data than they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.predict.prediction import Predictor
    from lengthwise.predict.tokenizer import PromptTokenizer
    from lengthwise.predict.transfer import Transferred
    from lengthwise.workload.dataset import Dataset


def transfer_matrix(
    name: str,
    loaded: Predictor,
    sources: Sequence[str],
    read: Callable[[Path, str | None, int | None, dict[str, str]], Dataset],
    encoder: PromptTokenizer,
    limit: int | None,
    seed: int,
    progress: ConsoleProgress,
) -> list[Transferred]:
    """The transfer matrix of some tables; divided by their own split, or by a hash of the prompt.

    Raises:
        InputError: the predictor learns nothing, or a table cannot be read or learnt from.
    """
    from lengthwise.cli.train import parse_where
    from lengthwise.errors import InputError
    from lengthwise.predict.kinds import recipe_of
    from lengthwise.predict.transfer import Parts, divided, transfer
    from lengthwise.workload.records import open_records

    metadata = getattr(loaded, "metadata", None)
    if metadata is None:
        raise InputError(
            f"{loaded.name} learns nothing, so there is no recipe to train others by: give a "
            "folder written by lengthwise train --out DIR"
        )
    rows = metadata.training.rows if limit is None else limit
    sets: dict[str, Parts] = {}
    for source in sources:
        place, _, condition = source.partition(":")
        path = Path(place)
        conditions = parse_where([condition] if condition else None)
        if "split" in open_records(path).names:
            parts = Parts(
                read(path, "train", None, conditions), read(path, "test", None, conditions)
            )
        else:
            parts = divided(read(path, None, None, conditions))
        # At random: tables are often sorted, by model or by kind of prompt.
        sets[path.stem + (f":{condition}" if condition else "")] = Parts(
            parts.train.sample(rows, seed), parts.test.sample(limit, seed)
        )
    progress.stage("training on each")
    return transfer(
        name,
        loaded,
        recipe_of(metadata),
        sets,
        encoder,
        trained_rows=metadata.training.rows,
        seed=seed,
        progress=lambda done, total, what: progress.note(f"{done + 1} of {total}: {what}"),
    )


def print_matrix(found: Sequence[Transferred], name: str, json: bool) -> None:
    """The transfer matrix as JSON, or as a table with a row for each predictor."""
    import dataclasses

    from rich.console import Console
    from rich.table import Table

    from lengthwise.cli.evaluate import print_json, shown_interval

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
