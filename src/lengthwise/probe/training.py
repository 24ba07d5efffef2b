"""A probe from a folder of states: its layer, its networks, its refinement, and how good it is.

Networks learn on training requests. Everything that is chosen (the epoch, the layer, the pooling,
the filter's constants) is chosen on validation requests. Test requests are only reported on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Literal, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from lengthwise.errors import InputError
from lengthwise.intervals import Estimate, GroupDraws
from lengthwise.probe.bins import SHAPES, longest_length, midpoints
from lengthwise.probe.filter_replay import INTERVALS, base_rates, fit_refinement, within
from lengthwise.probe.fit import Recipe, probabilities
from lengthwise.probe.heads import Workshop, fit_decode, fit_prompts, fit_reestimate
from lengthwise.probe.probe_folder import Metadata, Network, Probe, Training
from lengthwise.probe.probe_report import LayerError, Parts, Report, make_report
from lengthwise.probe.state_rows import Rows, layer_rows, prompt_inputs
from lengthwise.probe.states import TEST, TRAIN, VALID, Pooling, States

LEAST_REQUESTS: Final = {TRAIN: 20, VALID: 5, TEST: 5}  #: with states; fewer say nothing

_NAMES: Final = {TRAIN: "training", VALID: "validation", TEST: "test"}
_CHECKPOINTS: Final = "checkpoints"
Progress = Callable[[str, float], None]  #: what is being done, and the part done of it all, 0 to 1


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
