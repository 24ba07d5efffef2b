"""A probe from a folder of states: its layer, its networks, its refinement, and how good it is.

What `lengthwise train-probe` reports is how far off the estimates of what remains are. Every output
token of a test answer counts once, as in TRAIL's tables; the tokens of one answer stand or fall
together, so intervals come from drawing whole requests.

Networks learn on training requests. Everything that is chosen (the epoch, the layer, the pooling,
the filter's constants) is chosen on validation requests. Test requests are only reported on.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.intervals import Estimate, GroupDraws
from lengthwise.probe.filter_replay import (
    INTERVALS,
    Record,
    base_rates,
    counted_down,
    fit_refinement,
    raw,
    refined,
    within,
)
from lengthwise.probe.fit import Recipe, probabilities
from lengthwise.probe.heads import PromptHead, Workshop, fit_decode, fit_prompts, fit_reestimate
from lengthwise.probe.probe_folder import Metadata, Network, Probe, Refinement, Training
from lengthwise.probe.refine import (
    HIGH,
    LOW,
    MEAN,
    MEDIAN,
    SHAPES,
    Filter,
    longest_length,
    midpoints,
    new_filter,
)
from lengthwise.probe.state_rows import Rows, layer_rows, prompt_inputs
from lengthwise.probe.states import TEST, TRAIN, VALID, Pooling, States

#: What is compared: the prompt's prediction counted down; a prediction from prompt and age, made
#: anew at each token; the probe's newest prediction alone; the probe refined.
METHODS: Final = ("prompt_only", "reestimated", "raw", "refined")
LEAST_REQUESTS: Final = {TRAIN: 20, VALID: 5, TEST: 5}  #: with states; fewer say nothing

_DECILES: Final = 10
_NAMES: Final = {TRAIN: "training", VALID: "validation", TEST: "test"}
_CHECKPOINTS: Final = "checkpoints"

Progress = Callable[[str, float], None]  #: what is being done, and the part done of it all, 0 to 1


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


class Trained(NamedTuple):
    """A probe, and how good it is; its metadata holds the same figures."""

    probe: Probe
    report: Report


class _Candidate(NamedTuple):
    """A network that listens to some layers, and its errors without refinement."""

    layers: list[int]
    network: Network
    mae_valid: float
    mae_test: Estimate


def train_probe(
    states: States,
    out: Path,
    *,
    layers: Sequence[int] | None = None,
    bins: Literal["equal", "geometric"] = "geometric",
    count: int | None = None,
    seed: int = 0,
    recipe: Recipe | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a probe and write it to a folder; the same call goes on after an interruption.

    Args:
        states: what was collected.
        out: the folder; holds checkpoints until the probe is whole.
        layers: those to listen to, side by side; None tries each alone and takes the best.
        bins: their shape.
        count: of bins; None takes the shape's default.
        seed: of weights, order and intervals.
        recipe: how each network is trained.
        progress: called now and then.

    Raises:
        InputError: a layer that is not stored, too few requests, damaged files, or a folder that
            cannot be written.
    """
    started = time.monotonic()
    choices = [[layer] for layer in states.meta.layers] if layers is None else [list(layers)]
    stages = _Stages(progress or _silent, len(choices) + 3)
    shop = Workshop(_edges(states, bins, count), recipe or Recipe(), seed, out / _CHECKPOINTS)

    candidates = [_listen(states, shop, choice, stages) for choice in choices]
    best = min(candidates, key=lambda each: each.mae_valid)
    rows = layer_rows(states, best.layers)
    heads = fit_prompts(shop, states, best.layers, rows, stages.next("prompt"))
    # Attention is a comparison: pooling as tokens come, a chunk at a time, would cost each step.
    served = [each for each in heads if each.query is None]
    head = min(served, key=lambda each: each.mae(rows, VALID, shop.edges))
    pooling = cast(Pooling, head.pooling)
    prompts = prompt_inputs(states, best.layers, pooling)
    anew = fit_reestimate(shop, rows, prompts, stages.next("baseline"))
    tell = stages.next("refinement")
    valid, test = (
        rows.record(each, head.whole, probabilities(best.network, rows.inputs[rows.moments(each)]))
        for each in (VALID, TEST)
    )
    train = rows.moments(TRAIN)
    rates = base_rates(probabilities(best.network, rows.inputs[train]), rows.weights()[train])
    refinement = []
    for number, interval in enumerate(INTERVALS, start=1):
        refinement.append(fit_refinement(valid, shop.edges, rates, interval))
        tell(number / len(INTERVALS))
    report = make_report(
        Parts(
            states.meta.model, best.layers, bins, shop.edges, rates, rows, heads, head, refinement
        ),
        test,
        anew[rows.moments(TEST)],
        [] if layers is not None else [_layer_error(each) for each in candidates],
        seed,
    )
    probe = Probe(
        Metadata(
            model=states.meta.model,
            model_fingerprint=states.meta.model_fingerprint,
            hidden_size=states.meta.hidden_size,
            layers=best.layers,
            layers_total=states.meta.layers_total,
            max_tokens=states.meta.max_tokens,
            bins=bins,
            pooling=pooling,
            refinement=refinement,
            training=Training(
                requests=report.train_requests,
                states=report.train_states,
                dropped_states=report.dropped_states,
                dropped_requests=report.dropped_requests,
                seed=seed,
                seconds=round(time.monotonic() - started, 3),
                trained_at=datetime.now(UTC).isoformat(timespec="seconds"),
            ),
            metrics=report.as_dict(),
        ),
        shop.edges,
        best.network,
        head.network,
        rates,
    )
    probe.save(out)
    shutil.rmtree(shop.checkpoints, ignore_errors=True)
    return Trained(probe, report)


def _edges(
    states: States, bins: Literal["equal", "geometric"], count: int | None
) -> NDArray[np.float64]:
    """The bins: as far as training answers go."""
    lengths = states.requests.length[states.requests.split == TRAIN]
    if lengths.size == 0:
        raise InputError(f"{states.folder} holds no training requests: collect more prompts")
    default, make_edges = SHAPES[bins]
    longest = longest_length(lengths, states.meta.max_tokens)
    return make_edges(longest, default if count is None else count)


def _listen(states: States, shop: Workshop, layers: list[int], stages: _Stages) -> _Candidate:
    """Train a network on some layers."""
    rows = layer_rows(states, layers)
    _refuse_too_few(states, rows)
    name = "-".join(map(str, layers))
    network = fit_decode(shop, rows, name, stages.next(f"layer {name}"))

    def errors(moments: NDArray[np.int64]) -> NDArray[np.float64]:
        means = probabilities(network, rows.inputs[moments]) @ midpoints(shop.edges)
        found: NDArray[np.float64] = np.abs(
            within(means, rows.most(moments)) - rows.remaining[moments]
        )
        return found

    test = rows.moments(TEST)
    return _Candidate(
        layers,
        network,
        float(errors(rows.moments(VALID)).mean()),
        GroupDraws(rows.request[test], shop.seed).mean(errors(test)),
    )


def _layer_error(candidate: _Candidate) -> LayerError:
    return LayerError(candidate.layers[0], candidate.mae_valid, candidate.mae_test)


def _refuse_too_few(states: States, rows: Rows) -> None:
    for split, least in LEAST_REQUESTS.items():
        count = np.unique(rows.request[rows.moments(split)]).size
        if count < least:
            raise InputError(
                f"{states.folder} has usable states of {count} {_NAMES[split]} requests, training "
                f"needs at least {least}: collect more prompts"
            )


class _Stages:
    """Progress through stages that are taken to last equally long."""

    def __init__(self, show: Progress, count: int) -> None:
        self._show, self._count, self._begun = show, count, 0

    def next(self, name: str) -> Callable[[float], None]:
        """Begin a stage; what is returned is called with the part of it that is done."""
        before = self._begun
        self._begun += 1

        def tell(part: float) -> None:
            self._show(name, (before + part) / self._count)

        tell(0.0)
        return tell


def _silent(_stage: str, _part: float) -> None:
    """No progress is shown."""
