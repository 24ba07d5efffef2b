"""What the tuner chose: the settings that serve it, and a candidate as plain values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lengthwise.advise.tune import MAX_WAIT, Cap, Judged, Tuning, times_fcfs
from lengthwise.compare.progress import Progress
from lengthwise.errors import InputError
from lengthwise.intervals import t_interval
from lengthwise.predict.load import PromptLength, load_predictor
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


def chosen_settings(
    result: Tuning, predictor: str | None, probed: bool = False
) -> tuple[Settings, str]:
    """The settings of the choice, and what is left for the user to do.

    Args:
        result: what was chosen.
        predictor: what predicted in the simulations, as the user named it.
        probed: whether a probe was simulated.
    """
    # What was simulated without a bound must not be given the default one.
    values = {"max_overtakes": None, "max_lead": None, **result.chosen.candidate.discipline}
    # Where the engine turns out not to be able to, it serves all the same.
    values |= {name: "auto" for name in ("pausing", "peek") if values.get(name)}
    if values["policy"] == "fcfs":
        return parse_settings(values), ""
    to_do = []
    if predictor is not None and Path(predictor).is_dir():
        values["predictor"] = predictor_setting(predictor)
    elif predictor == PromptLength.name:
        values["predictor"] = predictor
    else:
        values["predictor"] = "declared"
        to_do.append(
            "the settings say predictor `declared`: callers state lengths themselves. Put the "
            "folder of a predictor made by `lengthwise train` there, or give it here with "
            "--predictor DIR"
        )
    if probed:
        to_do.append("settings name no probe, and the choice counts on one: serve with --probe DIR")
    return parse_settings(values), "; ".join(to_do)


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
        "gain_interval": t_interval(judged.gains),
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
            name: {"mean": float(values.mean()), "interval": t_interval(values)}
            for name, values in latencies.items()
        },
    }


def tuned_text(document: dict[str, Any], caps: list[Cap]) -> RenderableType:
    """The choice, what is expected of it, and the front."""
    chosen = document["chosen"]
    lines = [f"Chosen: {chosen['policy']}"]
    parts: list[RenderableType] = []
    if document["reason"]:
        lines[0] += f", since {document['reason']}"
    else:
        lines[0] += (
            f": {document['objective']} {chosen['gain']:.2f}× better than fcfs"
            f"{_interval(chosen['gain_interval'], ' ({} to {})')}; with true lengths and no bounds "
            f"{document['true_lengths_gain']:.2f}×"
        )
        seen = f", on {chosen['seeds']} fresh seeds" if chosen["seeds"] > 1 else ""
        lines += [
            f"{cap}: at worst {chosen['caps'][cap.metric]['worst']:.3f}{seen}" for cap in caps
        ]
        parts = [Text(), _expected(chosen)]
    if document["load"] == "as recorded" and (document["offered_load"] or 1.0) < 0.7:
        lines.append(
            f"As recorded the trace asks for {document['offered_load']:.0%} of what the engine can "
            "do: --load 0.9 tunes for a busier one"
        )
    lines.append(f"Settings: {document['settings_file']}, for lengthwise serve MODEL --settings")
    if document["note"]:
        lines.append(f"To do: {document['note']}")
    if len(document["front"]) > 1:
        parts += [Text(), _front(document, caps)]
    return Group(*(Text(line, style="" if i else "bold") for i, line in enumerate(lines)), *parts)


def _expected(chosen: dict[str, Any]) -> Table:
    """The latencies of the choice beside those of fcfs."""
    table = Table(title="Expected, as multiples of fcfs; below 1 is better", title_justify="left")
    for heading in ("latency", "× fcfs", "95 % interval"):
        table.add_column(heading, justify="left" if heading == "latency" else "right")
    for name, value in chosen["times_fcfs"].items():
        spread = _interval(value["interval"], "{} to {}")
        table.add_row(name, f"{value['mean']:.3f}", spread)
    return table


def _front(document: dict[str, Any], caps: list[Cap]) -> Table:
    """What more of the objective costs on the first cap."""
    axis = caps[0].metric if caps else "p99-e2el"
    table = Table(
        title="What more would cost: no other candidate is better on both",
        title_justify="left",
        caption=f"{document['simulations']:,} simulations of {document['workload']}, "
        f"{document['requests']:,} requests, load {document['offered_load'] or math.inf:.2f}. "
        f"Step costs: {document['cost']['source']}. Predictor: {document['predictor']}.",
    )
    labels = [row["policy"] for row in document["front"]]
    table.add_column("policy", no_wrap=True, min_width=max(map(len, labels)))
    objective = document["objective"].replace("-", " ")
    table.add_column(f"{objective}, × better", justify="right")
    unit = "s" if axis == MAX_WAIT else "× fcfs"
    table.add_column(f"{axis.removesuffix('-s').replace('-', ' ')}, {unit}", justify="right")
    for row in document["front"]:
        held = row["caps"].get(axis) or row["times_fcfs"]["p99-e2el"]
        table.add_row(
            row["policy"],
            f"{row['gain']:.2f}",
            f"{held['mean']:.2f}",
            style="bold" if row["policy"] == document["chosen"]["policy"] else None,
        )
    return table


def _interval(low_high: tuple[float, float] | None, text: str) -> str:
    """Both ends put in a text, or nothing without an interval."""
    return "" if low_high is None else text.format(*(f"{value:.3f}" for value in low_high))
