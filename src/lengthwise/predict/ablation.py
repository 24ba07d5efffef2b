"""What each part of a predictor is worth: trained again without it, or with another.

All variants of a run are trained on the same rows and measured on the same others. Choose by
the column of valid rows; those of test rows are for reporting.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, NamedTuple

import numpy as np

from lengthwise.errors import InputError, unknown_name
from lengthwise.predict.extract import requests_of
from lengthwise.predict.features import GROUP_NAMES
from lengthwise.predict.kendall import tau_with_interval
from lengthwise.predict.kinds import BACKBONE, Recipe, kind_named
from lengthwise.predict.prediction import Prediction, Predictor, Prompt, SlowPredictor
from lengthwise.predict.tokenizer import REFERENCE, PromptTokenizer
from lengthwise.predict.train import LEAST_ROWS, train
from lengthwise.workload.dataset import Dataset

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
    return Tau(len(prompts), *tau_with_interval(rows.lengths, scores, seed))
