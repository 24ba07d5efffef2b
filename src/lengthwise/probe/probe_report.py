"""What `lengthwise train-probe` reports: how far off the estimates of what remains are.

Every output token of a test answer counts once, as in TRAIL's tables; the tokens of one answer
stand or fall together, so intervals come from drawing whole requests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.intervals import Estimate, GroupDraws
from lengthwise.probe.bins import midpoints
from lengthwise.probe.filter_replay import Record, counted_down, raw, refined, within
from lengthwise.probe.heads import PromptHead
from lengthwise.probe.probe_folder import Refinement
from lengthwise.probe.refine import HIGH, LOW, MEAN, MEDIAN, Filter, new_filter
from lengthwise.probe.state_rows import Rows
from lengthwise.probe.states import TEST, TRAIN, VALID


@dataclass(frozen=True)
class LayerError:
    """How well one layer tells what remains, each state by itself."""

    layer: int
    mae_valid: float  # tokens; the layer is chosen by it
    mae_raw: Estimate  # tokens, on test answers


@dataclass(frozen=True)
class PoolingError:
    """How well one way of pooling the prompt tells the whole length."""

    pooling: str
    mae_valid: float  # tokens; the pooling is chosen by it
    mae_test: float  # tokens


@dataclass(frozen=True)
class IntervalError:
    """Predictions every so many tokens: the constants fitted for them, and the errors."""

    interval: int  # output tokens from one prediction to the next
    temper: float
    epsilon: float
    correction: float
    stretch: float
    mae_raw: float  # tokens, on test answers, at every output token
    mae_refined: float


@dataclass(frozen=True)
class Report:
    """All errors are mean absolute errors in tokens, on test answers unless said otherwise."""

    model: str
    layers: list[int]
    pooling: str
    bins: str
    edges: list[float]
    train_requests: int
    train_states: int
    valid_requests: int
    valid_states: int
    test_requests: int
    test_states: int
    dropped_states: int  # not finite; over all splits
    dropped_requests: int  # whose prompt's states are not finite; over all splits
    beyond_last_bin: int  # training answers longer than the last bin's end
    mae_prompt_only: Estimate  # the prompt's prediction counted down
    mae_reestimated: Estimate  # from prompt and age, anew at each token
    mae_raw: Estimate  # the probe, each token by itself
    mae_refined: Estimate  # the probe, refined from token to token
    mae_published_filter: Estimate  # the same probe, refined exactly as in the paper
    mae_refined_median: Estimate  # the same, by the median instead of the mean
    ratio_prompt_only: Estimate  # mae_prompt_only / mae_refined
    ratio_reestimated: Estimate  # mae_reestimated / mae_refined
    ratio_raw: Estimate  # mae_raw / mae_refined
    coverage_80: float  # share of lengths between the refined 10 % and 90 % quantiles
    by_layer: list[LayerError]
    by_pooling: list[PoolingError]
    by_interval: list[IntervalError]
    by_age_decile: list[AgeGroup]

    def as_dict(self) -> dict[str, Any]:
        """For JSON: a figure becomes three entries, `name`, `name_low` and `name_high`."""
        flat: dict[str, Any] = _flat(dataclasses.asdict(self))
        return flat


def _flat(value: Any) -> Any:
    if isinstance(value, list):
        return [_flat(each) for each in value]
    if not isinstance(value, dict):
        return value
    found: dict[str, Any] = {}
    for name, each in value.items():
        if isinstance(each, dict) and each.keys() == {"value", "low", "high"}:
            found |= {name: each["value"], f"{name}_low": each["low"], f"{name}_high": each["high"]}
        else:
            found[name] = _flat(each)
    return found


def write_layer_plot(layers: Sequence[LayerError], model: str, path: Path) -> None:
    """Error of the raw probe by layer, on test answers with 95 % intervals, as an SVG.

    Raises:
        InputError: the file cannot be written.
    """
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6.4, 3.6))
    numbers = [each.layer for each in layers]
    values = [each.mae_raw.value for each in layers]
    below = [each.mae_raw.value - each.mae_raw.low for each in layers]
    above = [each.mae_raw.high - each.mae_raw.value for each in layers]
    axes.errorbar(numbers, values, (below, above), marker="o", markersize=4, capsize=3)
    axes.set(
        xlabel="Layers below the state (0: the embedding)",
        ylabel="Mean absolute error (tokens)",
        title=f"Remaining length from one state of {model}",
        ylim=(0, None),
    )
    axes.xaxis.set_major_locator(pyplot.MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    try:
        figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror}") from None
    finally:
        pyplot.close(figure)


#: What is compared: the prompt's prediction counted down; a prediction from prompt and age, made
#: anew at each token; the probe's newest prediction alone; the probe refined.
METHODS: Final = ("prompt_only", "reestimated", "raw", "refined")

_DECILES: Final = 10


@dataclass(frozen=True)
class AgeGroup:
    """A tenth of all moments: those of about one age."""

    age_from: int  # output tokens so far, of the youngest
    age_to: int  # of the oldest
    states: int  # moments
    mean_remaining: float  # tokens
    mae_prompt_only: float  # tokens, as all below
    mae_reestimated: float
    mae_raw: float
    mae_refined: float


def by_age(
    age: NDArray[np.int64],
    remaining: NDArray[np.int64],
    errors: Mapping[str, NDArray[np.float64]],
) -> list[AgeGroup]:
    """Errors by tenth of the moments, youngest first; one age is never in two groups.

    Args:
        age: [moments].
        remaining: [moments].
        errors: by METHODS, absolute errors [moments].
    """
    bounds = np.unique(np.quantile(age, np.arange(1, _DECILES) / _DECILES, method="higher"))
    group = np.searchsorted(bounds, age, side="right")
    found = []
    for number in np.unique(group):
        own = group == number
        means = {f"mae_{name}": float(errors[name][own].mean()) for name in METHODS}
        found.append(
            AgeGroup(
                age_from=int(age[own].min()),
                age_to=int(age[own].max()),
                states=int(own.sum()),
                mean_remaining=float(remaining[own].mean()),
                **means,
            )
        )
    return found


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

    errors = {
        "prompt_only": off(counted_down(whole, test.age, test.most)),
        "reestimated": off(within(anew @ centres, test.most)),
        "raw": off(raw(test, parts.edges)),
        "refined": off(summaries[:, MEAN]),
    }
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
