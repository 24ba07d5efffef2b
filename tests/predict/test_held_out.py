"""Which rows a model is asked about that it was not trained on."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lengthwise.predict.calibration import cross_fit


def asked(rows: NDArray[np.int64]) -> list[tuple[set[int], set[int]]]:
    """Of each fold, the rows of the file that were learnt from and those that were asked about."""
    found: list[tuple[set[int], set[int]]] = []

    def fit(
        learnt: NDArray[np.int64], held_out: NDArray[np.int64], seed: int
    ) -> NDArray[np.float64]:
        found.append((set(rows[learnt].tolist()), set(rows[held_out].tolist())))
        return np.zeros((held_out.size, 1))

    assert np.isfinite(cross_fit(rows, 0, fit, lambda part: None)).all()
    return found


def test_every_row_is_asked_about_once() -> None:
    folds = asked(np.arange(1, 101))
    assert sorted(row for _, held_out in folds for row in held_out) == list(range(1, 101))
    assert all(not learnt & held_out for learnt, held_out in folds)


def test_answers_of_one_conversation_are_asked_about_together() -> None:
    """Else a model would have seen a prompt's beginning, and its first answer, in another row."""
    rows = np.repeat(np.arange(1, 61), np.arange(60) % 4 + 1)
    folds = asked(rows)
    assert sorted(row for _, held_out in folds for row in held_out) == list(range(1, 61))
    assert all(not learnt & held_out for learnt, held_out in folds)
