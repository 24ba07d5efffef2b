"""How near simulated latencies are to measured ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lengthwise.advise.fidelity import METRICS, SPEEDS, Compared
from lengthwise.advise.measured import Floats


def agreement(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Per speed, load and policy, over all requests of all repeats: how near the simulation is.

    For each of METRICS a mapping with the means and 99 % quantiles of both in s, the relative
    errors `mean_error`, `p50_error` and `p99_error` (simulated / measured − 1), and over the single
    requests `mape` (the mean of the absolute relative errors) and `pearson`. Where fcfs was
    measured at that load too, `over_fcfs` has mean and p99 as ratios to its, with their errors.
    What is undefined is NaN.
    """
    groups: dict[tuple[str, str, str], list[Compared]] = {}
    for each in compared:
        info = each.measured.info
        groups.setdefault((each.speed, info.load, info.policy), []).append(each)
    pooled = {key: _Pooled.of(parts) for key, parts in groups.items()}
    rows = []
    for (speed, load, policy), values in sorted(
        pooled.items(), key=lambda item: list(SPEEDS).index(item[0][0])
    ):
        row: dict[str, Any] = {
            "speed": speed,
            "load": load,
            "policy": policy,
            "rounds": values.rounds,
            "requests": len(values.observed["e2el"]),
            "preemptions_measured": values.preemptions[0],
            "preemptions_simulated": values.preemptions[1],
            **{name: values.errors(name) for name in METRICS},
        }
        fcfs = pooled.get((speed, load, "fcfs"))
        if fcfs is not None and policy != "fcfs":
            row["over_fcfs"] = {name: values.ratios(fcfs, name) for name in METRICS}
        rows.append(row)
    return rows


def by_round(compared: Sequence[Compared]) -> list[dict[str, Any]]:
    """Each round: what its costs were fitted to, how slow it was, and its errors at every speed."""
    rounds: dict[int, list[Compared]] = {}
    for each in compared:
        rounds.setdefault(id(each.measured), []).append(each)
    return [
        {
            "round": parts[0].measured.info.round,
            "policy": parts[0].measured.info.policy,
            "load": parts[0].measured.info.load,
            "repeat": parts[0].measured.info.repeat,
            "fitted_to": list(parts[0].fitted_to),
            "slowness": parts[0].slowness,
            "mean_error": {
                part.speed: {
                    name: _Pooled.of([part]).errors(name)["mean_error"] for name in METRICS
                }
                for part in parts
            },
        }
        for parts in rounds.values()
    ]


@dataclass(frozen=True)
class _Pooled:
    """The requests of several rounds."""

    rounds: list[int]
    observed: dict[str, Floats]
    simulated: dict[str, Floats]
    preemptions: tuple[int, int]

    @classmethod
    def of(cls, parts: Sequence[Compared]) -> _Pooled:
        return cls(
            rounds=[part.measured.info.round for part in parts],
            observed={m: np.concatenate([part.observed[m] for part in parts]) for m in METRICS},
            simulated={m: np.concatenate([part.simulated[m] for part in parts]) for m in METRICS},
            preemptions=(
                sum(int(part.measured.records.preemptions.sum()) for part in parts),
                sum(part.preemptions for part in parts),
            ),
        )

    def figures(self, metric: str) -> dict[str, tuple[float, float]]:
        """Mean, median and p99 in s, measured and simulated; NaN without requests."""
        both = []
        for values in (self.observed[metric], self.simulated[metric]):
            finite = values[np.isfinite(values)]
            both.append(finite if len(finite) else np.array([np.nan]))
        return {
            "mean": (float(both[0].mean()), float(both[1].mean())),
            "p50": (float(np.median(both[0])), float(np.median(both[1]))),
            "p99": (float(np.percentile(both[0], 99)), float(np.percentile(both[1], 99))),
        }

    def errors(self, metric: str) -> dict[str, float]:
        """See `agreement`."""
        figures = self.figures(metric)
        observed, simulated = self.observed[metric], self.simulated[metric]
        known = np.isfinite(observed) & np.isfinite(simulated) & (observed > 0)
        observed, simulated = observed[known], simulated[known]
        varied = len(observed) > 1 and np.ptp(observed) > 0 and np.ptp(simulated) > 0
        return {
            "measured_mean_s": figures["mean"][0],
            "simulated_mean_s": figures["mean"][1],
            "measured_p99_s": figures["p99"][0],
            "simulated_p99_s": figures["p99"][1],
            **{f"{name}_error": _error(*pair) for name, pair in figures.items()},
            "mape": float(np.mean(np.abs(simulated / observed - 1.0))) if len(observed) else np.nan,
            "pearson": float(np.corrcoef(observed, simulated)[0, 1]) if varied else np.nan,
        }

    def ratios(self, fcfs: _Pooled, metric: str) -> dict[str, float]:
        """See `agreement`."""
        found: dict[str, float] = {}
        own, base = self.figures(metric), fcfs.figures(metric)
        for name in ("mean", "p99"):
            measured, simulated = (own[name][k] / base[name][k] for k in (0, 1))
            found |= {
                f"measured_{name}": measured,
                f"simulated_{name}": simulated,
                f"{name}_error": _error(measured, simulated),
            }
        return found


def _error(measured: float, simulated: float) -> float:
    return simulated / measured - 1.0 if measured > 0 else np.nan
