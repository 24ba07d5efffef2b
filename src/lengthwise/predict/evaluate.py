"""How good a predictor is, on rows that it has not seen, in figures, as tables and as a picture.

Where it is good and where it is not is told by task, by length, and by its own estimate.

How long predictions take is timed one at a time and together.

The tables are for a terminal.
"""

from __future__ import annotations

import gc
import itertools
import math
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from lengthwise.errors import InputError
from lengthwise.predict.ablation import Ablated, Tau
from lengthwise.predict.extract import chunks_of, requests_of
from lengthwise.predict.kendall import kendall_tau, tau_with_interval
from lengthwise.predict.load import TRUE_TOKENS
from lengthwise.predict.prediction import Prediction, PredictionError, Predictor, Prompt
from lengthwise.predict.tokenizer import PromptTokenizer
from lengthwise.workload.dataset import Dataset

OTHER: Final = "other"  #: tasks that are too rare to be told apart
BATCH_SIZES: Final = (1, 8, 64, 512)
SUFFIXES: Final = (".svg", ".png", ".pdf")  #: of pictures


_WARM_UP: Final = 20  #: predictions that are not timed: compilation, first touch of the tables
_MOST_SECONDS: Final = 10.0  #: spent on each batch size, whatever the predictor
_MOST_BATCHES: Final = 200
_LEAST_BATCHES: Final = 10

_MOST_TASKS: Final = 20
_LEAST_ROWS: Final = 30  #: of a task: below, tau says nothing
_PARTS: Final = 10
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")

#: Words that stand before the verb that says what is asked for: "Could you please write …".
_COURTESY: Final = """
a also an and are be can could do following for from given good hello help hey hi i if in is it its
kindly let like love me must my need now of on please should sure tell the then there this to us
using want we will with would you your i'd i'm i've let's you're you've
"""
_COURTEOUS: Final = frozenset(_COURTESY.split())

#: What a picture shows of the quantiles: name, true share, marker.
_SHARES: Final = (
    ("below the 10 % quantile", 0.1, "v"),
    ("below the median", 0.5, "o"),
    ("below the 90 % quantile", 0.9, "^"),
)

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """Some of the rows."""

    name: str
    rows: int
    mean_length: float  #: tokens
    mean_expected: float  #: tokens
    tau: float | None  #: Kendall tau-b within these rows
    tau_low: float | None  #: ends of its 95 % bootstrap interval
    tau_high: float | None
    mae: float  #: of the expected length, tokens
    coverage_80: float  #: share of lengths from the 10 % to the 90 % quantile
    below_low: float  #: share below the 10 % quantile: 0.1 if calibrated
    below_median: float  #: share below the median, those equal to it counted half: 0.5
    above_high: float  #: share above the 90 % quantile: 0.1


def by_task(
    tasks: Sequence[str], lengths: Floats, predictions: Floats, groups: Rows, seed: int
) -> list[Part]:
    """A part for each of the most common tasks, the rest under `OTHER`; largest first.

    Args:
        tasks: of n rows.
        lengths: shape (n,), tokens.
        predictions: shape (n, 5), as in `Prediction`.
        groups: shape (n,), which rows are answers of one conversation: they are drawn together.
        seed: of the intervals.
    """
    common = [task for task, rows in Counter(tasks).most_common(_MOST_TASKS) if rows >= _LEAST_ROWS]
    names = np.array([task if task in common else OTHER for task in tasks])
    return [
        _part(name, np.flatnonzero(names == name), lengths, predictions, groups, seed)
        for name in [*common, OTHER]
        if (names == name).any()
    ]


def by_length(lengths: Floats, predictions: Floats, groups: Rows, seed: int) -> list[Part]:
    """A part for each tenth of the rows, from the shortest answers to the longest.

    Within a tenth lengths differ little, so its tau is far below that of all.
    """
    return _tenths(lengths, lengths, predictions, groups, seed)


def by_estimate(lengths: Floats, predictions: Floats, groups: Rows, seed: int) -> list[Part]:
    """A part for each tenth of the rows, by the expected length: is what is promised true?"""
    expected = predictions[:, Prediction._fields.index("expected")]
    return _tenths(expected, lengths, predictions, groups, seed)


def root_verb(prompt: str) -> str:
    """What a prompt asks for, in a word: its first one that is no courtesy, in lower case.

    "Could you please write a poem?" is to write, "What is a poem?" to say what. Prompts of other
    languages are told apart by their first words too.
    """
    words = [word.lower().replace("’", "'") for word in _WORD.findall(prompt[:400])]
    return next((word for word in words if word not in _COURTEOUS), OTHER)


def _tenths(
    keys: Floats, lengths: Floats, predictions: Floats, groups: Rows, seed: int
) -> list[Part]:
    parts = np.array_split(np.argsort(keys, kind="stable"), min(_PARTS, max(1, keys.size)))
    return [
        _part(
            f"{keys[rows].min():.0f}–{keys[rows].max():.0f}",
            rows,
            lengths,
            predictions,
            groups,
            seed,
        )
        for rows in parts
        if rows.size
    ]


def _part(
    name: str, rows: Rows, lengths: Floats, predictions: Floats, groups: Rows, seed: int
) -> Part:
    """The figures of the rows at some places."""
    lengths = lengths[rows]
    score, expected, low, median, high = predictions[rows].T
    tau, tau_low, tau_high = tau_with_interval(lengths, score, seed, groups[rows])
    return Part(
        name=name,
        rows=lengths.size,
        mean_length=float(lengths.mean()),
        mean_expected=float(expected.mean()),
        tau=tau,
        tau_low=tau_low,
        tau_high=tau_high,
        mae=float(np.abs(expected - lengths).mean()),
        coverage_80=float(((low <= lengths) & (lengths <= high)).mean()),
        below_low=float((lengths < low).mean()),
        below_median=float((lengths < median).mean() + (lengths == median).mean() / 2),
        above_high=float((lengths > high).mean()),
    )


@dataclass(frozen=True)
class Latency:
    """What a batch takes, on one core unless the predictor uses more by itself."""

    batch: int  #: prompts predicted in one call
    batches: int  #: timed
    microseconds_p50: float  #: of the whole batch
    microseconds_p99: float
    microseconds_per_prompt: float  #: median of the batch over its size


def latencies(predictor: Predictor, prompts: Sequence[Prompt]) -> list[Latency]:
    """Time batches of each of `BATCH_SIZES`; those larger than the number of prompts are left out.

    A predictor that is quicker on many prompts at once has a method `predict_many`, as
    `SlowPredictor` says; others are asked one prompt after the other.
    """
    found = []
    for size in BATCH_SIZES:
        if size <= len(prompts):
            taken = list(_times(predictor, _batches(prompts, size)))
            median, high = map(float, np.quantile(taken, [0.5, 0.99]))
            found.append(Latency(size, len(taken), median, high, median / size))
    return found


def predict_timed(
    predictor: Predictor, prompts: Sequence[Prompt]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Predict prompts one at a time, as they would come to a server.

    Returns:
        predictions, shape (n, 5), NaN where there is none; and the microseconds that each took,
        shape (n,).
    """
    predictions = np.empty((len(prompts), len(Prediction._fields)))
    microseconds = np.empty(len(prompts))
    with _no_collection():
        for row, prompt in enumerate(prompts):
            started = time.perf_counter_ns()
            prediction = _predict(predictor, prompt)
            microseconds[row] = (time.perf_counter_ns() - started) / 1_000
            predictions[row] = prediction
    return predictions, microseconds


def warm_up(predictor: Predictor, prompts: Sequence[Prompt]) -> None:
    """Predict a few prompts that are not timed."""
    for prompt in prompts[:_WARM_UP]:
        _predict(predictor, prompt)


def _batches(prompts: Sequence[Prompt], size: int) -> Iterator[list[Prompt]]:
    """Batches of prompts one after the other, from the first again after the last."""
    following = itertools.cycle(prompts)
    for _ in range(min(_MOST_BATCHES, max(_LEAST_BATCHES, len(prompts) // size))):
        yield list(itertools.islice(following, size))


def _times(predictor: Predictor, batches: Iterable[Sequence[Prompt]]) -> Iterator[float]:
    """The microseconds that each batch takes, until the time for it is over."""
    together = getattr(predictor, "predict_many", None)
    ends = time.perf_counter() + _MOST_SECONDS
    with _no_collection():
        for batch in batches:
            started = time.perf_counter_ns()
            if together is None:
                for prompt in batch:
                    _predict(predictor, prompt)
            else:
                together(batch)
            yield (time.perf_counter_ns() - started) / 1_000
            if time.perf_counter() > ends:
                return


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep the collector of garbage from what is timed."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _predict(predictor: Predictor, prompt: Prompt) -> Sequence[float]:
    try:
        return predictor.predict(prompt)
    except PredictionError:
        return (np.nan,) * len(Prediction._fields)


@dataclass(frozen=True)
class Evaluation:
    """What `lengthwise evaluate` reports. Taus are Kendall's tau-b; None where undefined."""

    rows: int
    unpredicted: int  #: rows without a usable prediction, left out of what follows
    tau: float | None  #: of the score against the length
    tau_low: float | None  #: ends of the 95 % bootstrap interval
    tau_high: float | None
    mae: float  #: mean absolute error of the expected length, tokens
    mae_median: float  #: of the predicted median, tokens
    mean_expected: float  #: of the expected lengths, tokens; near `mean_length` if calibrated
    mean_length: float  #: of the true lengths, tokens
    coverage_80: float  #: share of lengths from the 10 % to the 90 % quantile; 0.8 if calibrated
    below_low: float  #: share below the 10 % quantile
    above_high: float  #: share above the 90 % quantile
    prompt_length_tau: float | None  #: of the prompt's length alone
    ceiling_tau: float | None  #: of the mean of the same prompt's other answers, if there are any
    resample_tau: float | None  #: of one other answer to the same prompt
    microseconds_p50: float  #: median time of one prediction, one at a time, on one core
    microseconds_p99: float
    training_seconds: float | None  #: what the artifact says; None where nothing was trained
    latency: list[Latency]  #: by batch size
    tau_by_task: list[Part]  #: by the table's column of tasks, else by `root_verb`
    tau_by_decile: list[Part]  #: by tenth of the true lengths
    calibration: list[Part]  #: by tenth of the expected lengths


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    tokenizer: PromptTokenizer,
    *,
    seed: int = 0,
    progress: Callable[[int], None] | None = None,
) -> Evaluation:
    """Predict every row, one at a time as a server would, and compare.

    Args:
        predictor: what to evaluate; oracles are told the true length, as in a replay.
        dataset: prompts and lengths. Where a prompt has several answers, the first is the truth
            and the others are the ceiling.
        tokenizer: that of the served model.
        seed: of the bootstrap.
        progress: called with the number of rows done.
    """
    count = len(dataset.prompts)
    predictions = np.full((count, len(Prediction._fields)), math.nan)
    microseconds = np.zeros(count)
    prompt_tokens = np.zeros(count)
    timed: list[Latency] = []
    for chunk in chunks_of(dataset):
        prompts = _prompts(dataset, chunk, tokenizer)
        if chunk.start == 0:
            warm_up(predictor, prompts)
            timed = latencies(predictor, prompts)
        prompt_tokens[chunk] = [len(prompt.token_ids) for prompt in prompts]
        predictions[chunk], microseconds[chunk] = predict_timed(predictor, prompts)
        if progress is not None:
            progress(chunk.stop)
    usable = np.isfinite(predictions).all(axis=1)
    truth = dataset.lengths[usable].astype(np.float64)
    said = predictions[usable]
    score, expected, low, median, high = said.T
    tasks = dataset.tasks or [root_verb(prompt) for prompt in dataset.prompts]
    groups = dataset.rows[usable]  # a conversation is one row of the file, and many of these
    tau, tau_low, tau_high = tau_with_interval(truth, score, seed, groups)
    ceiling, resample = _ceilings(dataset)
    metadata = getattr(predictor, "metadata", None)
    return Evaluation(
        rows=count,
        unpredicted=int(count - usable.sum()),
        tau=tau,
        tau_low=tau_low,
        tau_high=tau_high,
        mae=_mean(np.abs(expected - truth)),
        mae_median=_mean(np.abs(median - truth)),
        mean_expected=_mean(expected),
        mean_length=_mean(truth),
        coverage_80=_mean((low <= truth) & (truth <= high)),
        below_low=_mean(truth < low),
        above_high=_mean(truth > high),
        prompt_length_tau=kendall_tau(dataset.lengths, prompt_tokens),
        ceiling_tau=ceiling,
        resample_tau=resample,
        microseconds_p50=float(np.median(microseconds)),
        microseconds_p99=float(np.quantile(microseconds, 0.99)),
        training_seconds=None if metadata is None else metadata.training.seconds,
        latency=timed,
        tau_by_task=by_task(
            [task for task, kept in zip(tasks, usable, strict=True) if kept],
            truth,
            said,
            groups,
            seed,
        ),
        tau_by_decile=by_length(truth, said, groups, seed),
        calibration=by_estimate(truth, said, groups, seed),
    )


def _prompts(dataset: Dataset, rows: slice, tokenizer: PromptTokenizer) -> list[Prompt]:
    """Some rows as requests; with the true length, which oracles read."""
    return [
        Prompt(token_ids, {**hints, TRUE_TOKENS: int(length)})
        for (token_ids, hints), length in zip(
            requests_of(dataset, tokenizer, rows), dataset.lengths[rows], strict=True
        )
    ]


def _ceilings(dataset: Dataset) -> tuple[float | None, float | None]:
    """Tau of the other answers' mean and of one other answer, where each prompt has another."""
    if dataset.samples is None or min(map(len, dataset.samples)) < 2:
        return None, None
    others = [lengths[1:] for lengths in dataset.samples]
    first = [lengths[0] for lengths in dataset.samples]
    return (
        kendall_tau(first, [lengths.mean() for lengths in others]),
        kendall_tau(first, [lengths[0] for lengths in others]),
    )


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float:
    return float(values.mean()) if values.size else math.nan


def require_picture(path: Path) -> None:
    """Refuse what no picture can be written to, before anything is predicted for it.

    Raises:
        InputError: another suffix than one of `SUFFIXES`, or no such folder.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a picture is one of {', '.join(SUFFIXES)}")
    if not path.absolute().parent.is_dir():
        raise InputError(f"cannot write {path}: there is no such folder")


def plot_calibration(parts: Sequence[Part], path: Path) -> None:
    """Draw expected against true lengths, and how many answers lie below each quantile.

    Args:
        parts: by tenth of the expected length, see `by_estimate`.
        path: the picture, in one of `SUFFIXES`.

    Raises:
        InputError: another suffix, or it cannot be written.
    """
    require_picture(path)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 3.8), layout="constrained")
    lengths, shares = figure.subplots(1, 2)
    expected = [part.mean_expected for part in parts]
    _draw_lengths(lengths, parts, expected)
    for (name, wanted, marker), found in zip(
        _SHARES,
        (
            [part.below_low for part in parts],
            [part.below_median for part in parts],
            [1 - part.above_high for part in parts],
        ),
        strict=True,
    ):
        (line,) = shares.plot(expected, found, marker=marker, markersize=4, label=name)
        shares.axhline(wanted, color=line.get_color(), linewidth=0.8, linestyle="dashed")
    shares.set(xlabel="expected length, tokens", ylabel="share of answers", ylim=(0, 1))
    shares.legend(loc="center right", fontsize="small")
    for axes in (lengths, shares):
        axes.grid(alpha=0.3)
    try:
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None


def _draw_lengths(axes: Any, parts: Sequence[Part], expected: Sequence[float]) -> None:
    true = [part.mean_length for part in parts]
    longest = max([*expected, *true], default=1.0)
    axes.plot([0, longest], [0, longest], color="grey", linewidth=0.8, linestyle="dashed")
    axes.plot(expected, true, marker="o", markersize=4)
    axes.set(xlabel="expected length, tokens", ylabel="mean true length, tokens")


def _tau(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def evaluation_table(evaluation: Evaluation) -> Table:
    """The figures with what they mean."""
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


def parts_table(title: str, parts: Sequence[Part]) -> Table:
    """Parts of the answers, a row each."""
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


def ablation_table(ablated: Sequence[Ablated]) -> Table:
    """What each part of a recipe is worth, a row for each setting."""
    splits = list(ablated[0].taus)
    table = Table("ablation", "setting", "rows", *(f"tau, {name}" for name in splits), "seconds")
    for each in ablated:
        taus = (shown_interval(each.taus[name]) for name in splits)
        table.add_row(each.ablation, each.setting, f"{each.rows:,}", *taus, f"{each.seconds:.1f}")
    return table
