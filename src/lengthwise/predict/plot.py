"""A picture of calibration: is what a predictor promises true?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from lengthwise.errors import InputError
from lengthwise.predict.breakdown import Part

SUFFIXES: Final = (".svg", ".png", ".pdf")

_SHARES: Final = (
    ("below the 10 % quantile", 0.1, "v"),
    ("below the median", 0.5, "o"),
    ("below the 90 % quantile", 0.9, "^"),
)


def plot_calibration(parts: Sequence[Part], path: Path) -> None:
    """Draw expected against true lengths, and how many answers lie below each quantile.

    Args:
        parts: by tenth of the expected length, see `breakdown.by_estimate`.
        path: the picture, in one of `SUFFIXES`.

    Raises:
        InputError: another suffix, or it cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: a picture is one of {', '.join(SUFFIXES)}")
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
