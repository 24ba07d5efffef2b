"""What the tuner chose: the settings that serve it, and a candidate as plain values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from lengthwise.advise.judged import Judged, interval
from lengthwise.advise.objectives import Cap, times_fcfs
from lengthwise.advise.tune import Tuning
from lengthwise.compare.progress import Progress
from lengthwise.errors import InputError
from lengthwise.predict.load import load_predictor
from lengthwise.serve.settings_file import predictor_setting
from lengthwise.settings import Settings, parse_settings


def as_good_as(predictor: str, progress: Progress) -> str:
    """A stand-in for an artifact where there are no prompts that it could read."""

    metadata = getattr(load_predictor(predictor, None), "metadata", None)
    tau = metadata.held_out.tau if metadata is not None else None
    if tau is None or round(tau, 2) <= 0.0:
        raise InputError(
            f"{predictor} did not order the answers that it was evaluated on (tau {tau}): train a "
            "better one, or give --predictor noisy-oracle:0.5"
        )
    progress.note(
        f"a trace has no prompts to predict from: simulating with lengths as noisy as those of "
        f"{predictor}, tau {tau:.2f}"
    )
    return f"noisy-oracle:{tau:.2f}"


def chosen_settings(result: Tuning, predictor: str | None) -> tuple[Settings, str]:
    """The settings of the choice, and what is left for the user to do."""

    # What was simulated without a bound must not be given the default one.
    values = {"max_overtakes": None, "max_lead": None, **result.chosen.candidate.discipline}
    # Where the engine turns out not to be able to, it serves all the same.
    values |= {name: "auto" for name in ("pausing", "peek") if values.get(name)}
    if values["policy"] == "fcfs":
        return parse_settings(values), ""
    if predictor is not None and Path(predictor).is_dir():
        return parse_settings({**values, "predictor": predictor_setting(predictor)}), ""
    return parse_settings({**values, "predictor": "declared"}), (
        "the settings say predictor `declared`: callers state lengths themselves. Put the folder "
        "of a predictor made by `lengthwise train` there, or give it here with --predictor DIR"
    )


_SHOWN = (
    "mean-e2el",
    "p50-e2el",
    "p99-e2el",
    "mean-ttft",
    "p99-ttft",
    "mean-latency-per-output-token",
)


def described(judged: Judged, caps: list[Cap]) -> dict[str, Any]:
    """A candidate as plain values: its gain, its caps, and its latencies as multiples of fcfs."""

    pairs = list(zip(judged.figures, judged.fcfs, strict=True))
    latencies = {
        name: np.array([times_fcfs(name, row, fcfs) for row, fcfs in pairs]) for name in _SHOWN
    }
    return {
        "policy": judged.candidate.label,
        "gain": judged.gain,
        "gain_interval": interval(judged.gains),
        "seeds": len(judged.gains),
        "caps": {
            cap.metric: {
                "limit": cap.limit,
                "mean": float(values.mean()),
                "worst": float(values.max()),
            }
            for cap, values in zip(caps, judged.measured.T, strict=False)
        },
        "times_fcfs": {
            name: {"mean": float(values.mean()), "interval": interval(values)}
            for name, values in latencies.items()
        },
    }
