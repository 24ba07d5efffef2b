"""What each part of a predictor is worth, and how well one does on other data.

For what a part is worth a predictor is trained again without it, or with another. All variants of a
run are trained on the same rows and measured on the same others. Choose by the column of valid
rows; those of test rows are for reporting.

How well a predictor does on other data than it was trained on is the transfer matrix.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from lengthwise.errors import InputError, unknown_name
from lengthwise.predict.extract import requests_of
from lengthwise.predict.features import GROUP_NAMES
from lengthwise.predict.kendall import tau_with_interval
from lengthwise.predict.kinds import BACKBONE, Recipe, kind_named, recipe_of
from lengthwise.predict.prediction import Prediction, Predictor, Prompt, SlowPredictor
from lengthwise.predict.tokenizer import REFERENCE, PromptTokenizer
from lengthwise.predict.train import LEAST_ROWS, train
from lengthwise.workload.dataset import TEST, TRAIN, Dataset, first_words, parse_where, split_of
from lengthwise.workload.records import open_records

FEW: Final = (250, 1_000)  #: rows that a predictor is trained on anew, to see how soon it pays

_LIST_LENGTHS: Final = (8, 16, 32, 64, 128, 256)
_ROWS: Final = (500, 1_000, 2_000, 5_000, 10_000, 20_000)


class Variant(NamedTuple):
    """One way to train."""

    setting: str  #: what is different, in a word or two
    recipe: Recipe
    rows: int | None = None  #: train on the first so many only


class Tau(NamedTuple):
    """Kendall's tau-b with its 95 % bootstrap interval; None where undefined."""

    rows: int
    tau: float | None
    tau_low: float | None
    tau_high: float | None


@dataclass(frozen=True)
class Ablated:
    """How one variant does."""

    ablation: str
    setting: str
    rows: int  #: it was trained on
    seconds: float  #: that training took
    taus: dict[str, Tau]  #: by split


def list_lengths(base: Recipe, rows: int, backbones: Sequence[str]) -> list[Variant]:
    """Prompts of a list: the paper's reviewers asked what they matter."""
    return [
        Variant(str(length), replace(base, list_length=length))
        for length in _LIST_LENGTHS
        if length <= rows
    ]


def feature_groups(base: Recipe, rows: int, backbones: Sequence[str]) -> list[Variant]:
    """All groups of features, all but one, and one alone."""
    if base.backbone is not None:
        raise InputError("a backbone reads text: the ablation features is of predictors of words")
    everything = base.groups or GROUP_NAMES
    variants = [Variant("all", base)]
    if len(everything) > 1:
        for name in everything:
            rest = tuple(each for each in everything if each != name)
            variants.append(Variant(f"without {name}", replace(base, groups=rest)))
        for name in everything:
            variants.append(Variant(f"{name} only", replace(base, groups=(name,))))
    return variants


def row_counts(base: Recipe, rows: int, backbones: Sequence[str]) -> list[Variant]:
    """The learning curve."""
    counts = [count for count in _ROWS if LEAST_ROWS <= count < rows]
    return [Variant(f"{count:,}", base, count) for count in [*counts, rows]]


def pretrained(base: Recipe, rows: int, backbones: Sequence[str]) -> list[Variant]:
    """The predictor as it is, then with each of other pretrained models (the paper's sizes)."""
    kind = kind_named(base.kind)
    if BACKBONE not in kind.reads:
        kind = kind_named("encoder")
    loss = base.loss if base.loss in kind.losses else None
    return [
        Variant(base.backbone or base.kind, base),
        *(
            Variant(name, replace(base, kind=kind.name, loss=loss, backbone=name))
            for name in backbones or [REFERENCE]
        ),
    ]


#: By name: from the recipe that is varied, the number of training rows and the backbones that are
#: to be compared to the variants.
ABLATIONS: Final[dict[str, Callable[[Recipe, int, Sequence[str]], list[Variant]]]] = {
    "backbone": pretrained,
    "features": feature_groups,
    "list-size": list_lengths,
    "rows": row_counts,
}


def ablate(
    names: Sequence[str],
    base: Recipe,
    learnt: Dataset,
    measured: Mapping[str, Dataset],
    tokenizer: PromptTokenizer,
    *,
    backbones: Sequence[str] = (),
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[Ablated]:
    """Train every variant of the named ablations.

    Args:
        names: of `ABLATIONS`.
        base: what is varied.
        learnt: rows to train on.
        measured: rows to measure on, by the name of their split.
        tokenizer: that of the served model.
        backbones: pretrained models that the ablation backbone compares; none: the built-in one.
        seed: of the intervals.
        progress: called with the number of variants done, of all, and what comes next.

    Raises:
        InputError: an unknown ablation, or a variant cannot be trained.
    """
    chosen: list[tuple[str, Variant]] = []
    for name in names:
        if name not in ABLATIONS:
            raise unknown_name("ablation", name, ABLATIONS)
        variants = ABLATIONS[name](base, learnt.lengths.size, backbones)
        chosen += [(name, variant) for variant in variants]
    prompts = {split: requests_of(rows, tokenizer, slice(None)) for split, rows in measured.items()}
    results = []
    for done, (name, variant) in enumerate(chosen):
        if progress is not None:
            progress(done, len(chosen), f"{name}: {variant.setting}")
        rows = learnt if variant.rows is None else learnt.first(variant.rows)
        started = time.monotonic()
        predictor = train(rows, tokenizer, variant.recipe)
        seconds = time.monotonic() - started
        taus = {
            split: measure_tau(predictor, prompts[split], found, seed)
            for split, found in measured.items()
        }
        results.append(Ablated(name, variant.setting, rows.lengths.size, seconds, taus))
    return results


def measure_tau(predictor: Predictor, prompts: Sequence[Prompt], rows: Dataset, seed: int) -> Tau:
    """How well a predictor orders some rows.

    Args:
        predictor: what is asked, about all rows at once where it is slow.
        prompts: of the rows, as a server would see them.
        rows: the truth.
        seed: of the interval.
    """
    if isinstance(predictor, SlowPredictor):
        said: Sequence[Prediction] = predictor.predict_many(prompts)
    else:
        said = [predictor.predict(prompt) for prompt in prompts]
    scores = np.array([prediction.score for prediction in said])
    return Tau(len(prompts), *tau_with_interval(rows.lengths, scores, seed, rows.rows))


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
        InputError: the predictor learns nothing, a table is named twice, or one cannot be read or
            learnt from.
    """
    metadata = getattr(loaded, "metadata", None)
    if metadata is None:
        raise InputError(
            f"{loaded.name} learns nothing, so there is no recipe to train others by: give a "
            "folder written by lengthwise train --out DIR"
        )
    rows = metadata.training.rows if limit is None else limit
    sets: dict[str, Parts] = {}
    for label, source in _labels(sources).items():
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
        sets[label] = Parts(parts.train.sample(rows, seed), parts.test.sample(limit, seed))
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


def _labels(sources: Sequence[str]) -> dict[str, str]:
    """The sources by label: the file's name, or all that was given where two have one name.

    Raises:
        InputError: one is named twice.
    """
    short = []
    for source in sources:
        place, colon, condition = source.partition(":")
        short.append(Path(place).stem + colon + condition)
    found: dict[str, str] = {}
    for name, source in zip(short, sources, strict=True):
        label = name if short.count(name) == 1 else source
        if label in found:
            raise InputError(f"--across names {source} twice: give each table once")
        found[label] = source
    return found
