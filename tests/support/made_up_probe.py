"""A probe of any width whose weights are drawn at random: for tests of what happens around it."""

from __future__ import annotations

import numpy as np

from lengthwise.probe.probe_folder import Metadata, Network, Probe, Refinement, Training
from lengthwise.probe.refine import equal_edges

LONGEST = 100
BINS = 5


def made_up_probe(
    *,
    hidden: int = 4,
    layers: tuple[int, ...] = (1,),
    layers_total: int = 2,
    fingerprint: str = "abc",
    pooling: str = "mean",
    seed: int = 0,
) -> Probe:
    random = np.random.default_rng(seed)

    def network() -> Network:
        def draw(*shape: int) -> np.ndarray:
            return random.standard_normal(shape).astype(np.float32)

        return Network(draw(hidden * len(layers), 8), draw(8), draw(8, BINS), draw(BINS))

    metadata = Metadata.model_validate(
        {
            "model": "made-up",
            "model_fingerprint": fingerprint,
            "hidden_size": hidden,
            "layers": list(layers),
            "layers_total": layers_total,
            "max_tokens": LONGEST,
            "bins": "equal",
            "pooling": pooling,
            "refinement": [Refinement(interval=1, temper=1.0, epsilon=1e-3)],
            "training": Training(
                requests=1,
                states=1,
                dropped_states=0,
                dropped_requests=0,
                seed=0,
                seconds=0.0,
                trained_at="2026-01-01T00:00:00+00:00",
            ),
            "metrics": {},
        }
    )
    return Probe(metadata, equal_edges(LONGEST, BINS), network(), network())
