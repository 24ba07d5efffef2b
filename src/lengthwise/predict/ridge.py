"""Ridge regression on the normal scores of lengths: where ListMLE starts from.

A linear model's ridge fit to ranks is most of the way to its best ranking, in closed form and in
well under a second. ListMLE from zero needs many epochs to get as far.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from lengthwise.predict.linear import SparseRows
from lengthwise.predict.ranking import dense_ranks

PENALTY: Final = 3.0  #: of squared weights; rows have norm at most 2

#: Of the relative residual: taus were the same within 0.0002 at a tenth of it.
_TOLERANCE: Final = 1e-3
_MOST_ITERATIONS: Final = 100


def normal_scores(lengths: NDArray[np.float64]) -> NDArray[np.float64]:
    """Each length's rank, as the standard normal number at that place; ties share one.

    Ranks, because order is what scheduling needs and because a few endless answers would else
    decide the fit.
    """
    from scipy.special import ndtri

    ranks = dense_ranks(lengths)
    sizes = np.bincount(ranks)
    # Of a group of ties, the mean of the places that they fill together.
    places = np.cumsum(sizes) - (sizes - 1) / 2
    scores: NDArray[np.float64] = ndtri((places[ranks] - 0.5) / lengths.size)
    return scores


def fit_ridge(rows: SparseRows, columns: int, targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """The weights that minimise ‖X·w − (targets − mean)‖² + PENALTY·‖w‖².

    Solved in the dual, (X·Xᵀ + PENALTY·I)·a = targets, w = Xᵀ·a, by conjugate gradients: neither
    matrix is ever formed.

    Args:
        rows: X, one row per prompt.
        columns: how many columns X has.
        targets: shape (rows,).

    Returns:
        the weights, shape (columns,).
    """
    from scipy.sparse import csr_array
    from scipy.sparse.linalg import LinearOperator, cg

    count = targets.size
    matrix: Any = csr_array((rows.values, rows.columns, rows.starts), shape=(count, columns))
    transposed = matrix.T

    def apply(vector: NDArray[np.float64]) -> NDArray[np.float64]:
        # In single precision like the matrix, which would else be copied at each step.
        image: NDArray[np.float64] = matrix @ (transposed @ vector.astype(np.float32))
        return image + PENALTY * vector

    operator = LinearOperator((count, count), matvec=apply, dtype=np.float64)
    dual, _ = cg(operator, targets - targets.mean(), rtol=_TOLERANCE, maxiter=_MOST_ITERATIONS)
    weights: NDArray[np.float64] = np.asarray(
        transposed @ dual.astype(np.float32), dtype=np.float64
    )
    return weights
