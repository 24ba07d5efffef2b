"""From what was trained to what is reported: every figure is of test answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.intervals import GroupDraws
from lengthwise.probe.bins import midpoints
from lengthwise.probe.filter_replay import Record, counted_down, raw, refined, within
from lengthwise.probe.heads import PromptHead
from lengthwise.probe.probe_folder import Refinement
from lengthwise.probe.probe_report import (
    METHODS,
    IntervalError,
    LayerError,
    PoolingError,
    Report,
    by_age,
)
from lengthwise.probe.refine import HIGH, LOW, MEAN, MEDIAN, Filter, new_filter
from lengthwise.probe.state_rows import Rows
from lengthwise.probe.states import TEST, TRAIN, VALID


class Parts(NamedTuple):
    """What a training came to."""

    model: str
    layers: list[int]
    bins: str
    edges: NDArray[np.float64]
    rates: NDArray[np.float64]  #: how common each bin is
    rows: Rows  #: at those layers
    heads: list[PromptHead]  #: all that were tried
    head: PromptHead  #: the one taken
    refinement: list[Refinement]

    def filter(self, constants: Refinement) -> Filter:
        """The filter with some constants, for these bins."""
        return constants.filter(self.edges, self.rates)


def make_report(
    parts: Parts,
    test: Record,
    anew: NDArray[np.float32],
    sweep: Sequence[LayerError],
    seed: int,
) -> Report:
    """All figures.

    Args:
        parts: what was trained.
        test: the test answers.
        anew: [moments of test, bins], what the baseline says that sees prompt and age.
        sweep: errors by layer.
        seed: of the intervals.
    """
    centres, rows = midpoints(parts.edges), parts.rows
    whole = (test.whole @ centres)[test.request]
    summaries = refined(test, parts.filter(parts.refinement[0]))

    def off(estimates: NDArray[np.float64]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.abs(estimates - test.remaining)
        return found

    errors = dict(
        zip(
            METHODS,
            (
                off(counted_down(whole, test.age, test.most)),
                off(within(anew @ centres, test.most)),
                off(raw(test, parts.edges)),
                off(summaries[:, MEAN]),
            ),
            strict=True,
        )
    )
    drawn = GroupDraws(test.request, seed)
    inside = (summaries[:, LOW] <= test.remaining) & (test.remaining <= summaries[:, HIGH])
    requests = {split: rows.requests(split) for split in (TRAIN, VALID, TEST)}
    return Report(
        model=parts.model,
        layers=parts.layers,
        pooling=parts.head.pooling,
        bins=parts.bins,
        edges=[float(edge) for edge in parts.edges],
        train_requests=requests[TRAIN].size,
        train_states=rows.moments(TRAIN).size,
        valid_requests=requests[VALID].size,
        valid_states=rows.moments(VALID).size,
        test_requests=requests[TEST].size,
        test_states=test.age.size,
        dropped_states=rows.dropped_states,
        dropped_requests=rows.dropped_requests,
        beyond_last_bin=int((rows.length[requests[TRAIN]] >= parts.edges[-1]).sum()),
        mae_prompt_only=drawn.mean(errors["prompt_only"]),
        mae_reestimated=drawn.mean(errors["reestimated"]),
        mae_raw=drawn.mean(errors["raw"]),
        mae_refined=drawn.mean(errors["refined"]),
        mae_published_filter=drawn.mean(off(refined(test, new_filter(parts.edges, 1, 0))[:, MEAN])),
        mae_refined_median=drawn.mean(off(summaries[:, MEDIAN])),
        ratio_prompt_only=drawn.ratio(errors["prompt_only"], errors["refined"]),
        ratio_reestimated=drawn.ratio(errors["reestimated"], errors["refined"]),
        ratio_raw=drawn.ratio(errors["raw"], errors["refined"]),
        coverage_80=float(inside.mean()),
        by_layer=list(sweep),
        by_pooling=[
            PoolingError(
                each.pooling, each.mae(rows, VALID, parts.edges), each.mae(rows, TEST, parts.edges)
            )
            for each in parts.heads
        ],
        by_interval=[
            IntervalError(
                interval=each.interval,
                temper=each.temper,
                epsilon=each.epsilon,
                correction=each.correction,
                stretch=each.stretch,
                mae_raw=float(off(raw(test, parts.edges, each.interval)).mean()),
                mae_refined=float(
                    off(refined(test, parts.filter(each), each.interval)[:, MEAN]).mean()
                ),
            )
            for each in parts.refinement
        ],
        by_age_decile=by_age(test.age, test.remaining, errors),
    )
