"""How well a predictor does on other data than it was trained on: the transfer matrix."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from lengthwise.errors import InputError
from lengthwise.predict.ablation import Tau, measure_tau
from lengthwise.predict.extract import requests_of
from lengthwise.predict.kinds import Recipe, recipe_of
from lengthwise.predict.prediction import Predictor
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.predict.train import train
from lengthwise.workload.dataset import TEST, TRAIN, Dataset, parse_where, split_of
from lengthwise.workload.records import open_records

FEW: Final = (250, 1_000)  #: rows that a predictor is trained on anew, to see how soon it pays


class Parts(NamedTuple):
    """A data set, divided so that no prompt is in both parts."""

    train: Dataset
    test: Dataset


@dataclass(frozen=True)
class Transferred:
    """One predictor, asked about every data set."""

    trained_on: str
    rows: int  #: that it was trained on
    seconds: float | None  #: that training took; None where it was there already
    taus: dict[str, Tau]  #: on the test rows, by data set


def divided(table: Dataset) -> Parts:
    """Train and test rows by a hash of the prompt; of a conversation, of what is said first."""
    parts = np.array([split_of(text) for text in first_words(table)])
    return Parts(table.of(np.flatnonzero(parts == TRAIN)), table.of(np.flatnonzero(parts == TEST)))


def first_words(table: Dataset) -> list[str]:
    """What each prompt begins with: rows of one conversation begin with the same."""
    chats = table.chats or [None] * len(table.prompts)
    return [
        prompt if chat is None else "\n".join(message.content for message in chat.messages()[:2])
        for prompt, chat in zip(table.prompts, chats, strict=True)
    ]


def transfer(
    name: str,
    loaded: Predictor,
    recipe: Recipe,
    sets: Mapping[str, Parts],
    tokenizer: PromptTokenizer,
    *,
    trained_rows: int,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Transferred]:
    """Ask a predictor, and ones trained anew on each data set, about the test rows of all.

    Args:
        name: of the predictor.
        loaded: the predictor as it is.
        recipe: by which others are trained, on all train rows and on a few.
        sets: the data sets by name.
        tokenizer: that of the served model.
        trained_rows: how many rows the predictor was trained on.
        seed: of the intervals.
        progress: called with the number of predictors done, of all, and what comes next.

    Raises:
        InputError: one cannot be trained.
    """
    asked = {each: requests_of(parts.test, tokenizer, slice(None)) for each, parts in sets.items()}

    def taus(predictor: Predictor) -> dict[str, Tau]:
        return {
            each: measure_tau(predictor, asked[each], parts.test, seed)
            for each, parts in sets.items()
        }

    wanted = [
        (each, parts.train if rows is None else parts.train.first(rows))
        for each, parts in sets.items()
        for rows in (*(few for few in FEW if few < parts.train.lengths.size), None)
    ]
    found = [Transferred(name, trained_rows, None, taus(loaded))]
    for done, (each, rows) in enumerate(wanted):
        if progress is not None:
            progress(done, len(wanted), f"{each}, {rows.lengths.size:,} rows")
        started = time.monotonic()
        predictor = train(rows, tokenizer, recipe)
        seconds = time.monotonic() - started
        found.append(Transferred(each, rows.lengths.size, seconds, taus(predictor)))
    return found


def transfer_matrix(
    name: str,
    loaded: Predictor,
    sources: Sequence[str],
    read: Callable[[Path, str | None, int | None, dict[str, str]], Dataset],
    encoder: PromptTokenizer,
    limit: int | None,
    seed: int,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Transferred]:
    """The transfer matrix of some tables; divided by their own split, or by a hash of the prompt.

    Args:
        name: of the predictor.
        loaded: the predictor as it is.
        sources: the tables, each a path or PATH:COLUMN=VALUE.
        read: reads a table: its path, a split, a limit of rows, and the values of columns.
        encoder: the tokenizer of the served model.
        limit: rows of each part at most; of the train rows None is as many as the predictor had.
        seed: of the rows drawn, and of the intervals.
        progress: see `transfer`.

    Raises:
        InputError: the predictor learns nothing, or a table cannot be read or learnt from.
    """
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
    return transfer(
        name,
        loaded,
        recipe_of(metadata),
        sets,
        encoder,
        trained_rows=metadata.training.rows,
        seed=seed,
        progress=progress,
    )
