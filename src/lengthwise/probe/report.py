"""What `lengthwise train-probe` reports."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from lengthwise.probe.accuracy import AgeGroup, Figure


@dataclass(frozen=True)
class LayerError:
    """How well one layer tells what remains, each state by itself."""

    layer: int
    mae_valid: float  # tokens; the layer is chosen by it
    mae_raw: Figure  # tokens, on test answers


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
    mae_prompt_only: Figure  # the prompt's prediction counted down
    mae_reestimated: Figure  # from prompt and age, anew at each token
    mae_raw: Figure  # the probe, each token by itself
    mae_refined: Figure  # the probe, refined from token to token
    mae_published_filter: Figure  # the same probe, refined exactly as in the paper
    mae_refined_median: Figure  # the same, by the median instead of the mean
    ratio_prompt_only: Figure  # mae_prompt_only / mae_refined
    ratio_reestimated: Figure  # mae_reestimated / mae_refined
    ratio_raw: Figure  # mae_raw / mae_refined
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
