"""Evaluations as tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from lengthwise.predict.ablation import Ablated, Tau
from lengthwise.predict.breakdown import Part
from lengthwise.predict.evaluate import Evaluation


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
