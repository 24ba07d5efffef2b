"""The Muon optimiser: momentum whose every matrix is made near-orthogonal before it is applied.

Needs about half the tokens that AdamW does for the same loss on a model of this size. PyTorch's own
version computes in bfloat16, which is many times slower than float32 on processors without it.

Source: Jordan et al. (2024), https://kellerjordan.github.io/posts/muon/
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

# Newton–Schulz coefficients of the source: they bring all singular values near 1 in five rounds.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ROUNDS = 5
MOMENTUM = 0.95


def orthogonalised(matrix: Any) -> Any:
    """The nearest orthogonal matrix, roughly: the same singular vectors, singular values near 1."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix) / (matrix.norm() + 1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


class Muon:
    """Muon over weight matrices [outputs, inputs], with Nesterov momentum."""

    def __init__(self, matrices: Iterable[Any], learning_rate: float) -> None:
        """Keep one momentum buffer per matrix.

        Args:
            matrices: two-dimensional parameters of hidden layers; embeddings do not belong here.
            learning_rate: of a step at the schedule's full height.
        """
        import torch

        self.matrices = list(matrices)
        self.momenta = [torch.zeros_like(matrix) for matrix in self.matrices]
        self.learning_rate = learning_rate

    def step(self, height: float) -> None:
        """Apply the gradients, at `height` (0 to 1) times the learning rate."""
        import torch

        with torch.no_grad():
            for matrix, momentum in zip(self.matrices, self.momenta, strict=True):
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                update = orthogonalised(matrix.grad.lerp(momentum, MOMENTUM))
                # Tall matrices move more, so that outputs change alike whatever the shape.
                scale = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
                matrix.sub_(update, alpha=height * self.learning_rate * scale)
