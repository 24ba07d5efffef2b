"""Rounds in figures: medians with the smallest and largest, of one side or of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

Round = Mapping[str, float]


def spread(rounds: Sequence[Round], names: Sequence[str]) -> dict[str, float]:
    """Each figure's median by its name, the smallest with `_low` and the largest with `_high`."""
    merged: dict[str, float] = {}
    for name in names:
        values = [each[name] for each in rounds]
        merged[name] = median(values)
        merged[f"{name}_low"], merged[f"{name}_high"] = min(values), max(values)
    return merged


def paired(base: Sequence[Round], other: Sequence[Round], names: Sequence[str]) -> dict[str, float]:
    """Other over base, neighbour by neighbour."""
    ratios = [
        {name: b[name] / max(a[name], 1e-9) for name in names}
        for a, b in zip(base, other, strict=True)
    ]
    return spread(ratios, names)
