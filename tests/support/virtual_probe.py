"""A probe for the engine without a forward pass: what it says of each prompt is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lengthwise.emulate.driver import VirtualEngine
from lengthwise.probe.refine import pool, start, summarise
from lengthwise.vllm.hidden_states import ProbeOutput, attach
from lengthwise.vllm.predictions import Refinement
from tests.support.made_up_probe import BINS, LONGEST, made_up_probe

Distributions = NDArray[np.float32]  #: over bins of the whole length, [requests, BINS]


def random_distributions(lengths: Sequence[int], seed: int) -> Distributions:
    """Over the bins, most of each near the true length."""
    generator = np.random.default_rng([seed, 4])
    middles = (np.arange(BINS) + 0.5) * LONGEST / BINS
    off = np.abs(middles - np.array(lengths)[:, None]) + generator.random((len(lengths), BINS)) * 40
    likely = np.exp(-off / 10.0)
    return (likely / likely.sum(axis=1, keepdims=True)).astype(np.float32)


def said(distributions: Distributions, predictions: NDArray[np.float64]) -> NDArray[np.float64]:
    """The same, with what was predicted of each prompt, as the simulator takes it."""
    count, constants = len(distributions), made_up_probe().filter(1)
    posteriors, left = np.zeros((count, BINS)), np.empty((count, 4))
    rows = np.arange(count)
    start(posteriors, rows, distributions)
    sigmas = np.log(predictions[:, 4] / predictions[:, 2]) / (2 * NormalDist().inv_cdf(0.9))
    doubts = np.flatnonzero(sigmas > 0.01)
    pool(posteriors, doubts, predictions[doubts, 3], sigmas[doubts], constants)
    summarise(posteriors, rows, np.full(count, float(LONGEST)), constants, left)
    return np.concatenate([np.zeros((count, 1)), left], axis=1)


def listen(scheduler: Any) -> None:
    """Let a scheduler of ours take up what comes from the made-up probe."""
    scheduler._refinement = Refinement(
        scheduler._live, scheduler.counters, made_up_probe(), interval=1
    )
    scheduler._settings._opener.engine = replace(scheduler._settings._opener.engine, has_probe=True)


class VirtualProbe:
    """Sends what is given along with the step that computes the rest of a prompt."""

    def __init__(self, engine: VirtualEngine) -> None:
        self._engine = engine
        self._distributions: dict[str, NDArray[np.float32]] = {}
        executor = engine._core.model_executor
        listen(engine.scheduler)
        result = executor._result

        def with_predictions(output: Any, *others: Any) -> Any:
            ids = [
                name
                for name, tokens in zip(output.req_ids, output.sampled_token_ids, strict=True)
                if tokens and name in self._distributions
            ]
            if ids:
                prompt = np.stack([self._distributions.pop(name) for name in ids])
                attach(output, [ProbeOutput(prompt_ids=ids, prompt=prompt)])
            return result(output, *others)

        executor._result = with_predictions

    def expect(self, distributions: Distributions) -> None:
        """Of the requests that are sent next, in order."""
        first = self._engine._sent
        self._distributions = {str(first + place): d for place, d in enumerate(distributions)}
