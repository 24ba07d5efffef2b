"""Presets against the layer times that they were made from, and what a step of each preset takes.

    python bench/presets.py
    python bench/presets.py --json > presets.json

Three questions. How near are times between the measured numbers of tokens: every second number is
left out and predicted from the others, then the other half. How near would a derived pair of GPU
and model be: each measured pair is derived as if nobody had measured it. And what comes out.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from bench.support.layer_errors import HALVES, Errors, derived_errors, left_out_errors
from lengthwise.simulate.presets import DEGREES, Measured, Preset, measured_times, preset

SHARES = (0.0, 0.25, 0.5, 0.75, 0.9)  # of the rise that comes in whole tiles
SHOWN = (
    "a100:llama-3-8b",
    "4xa100:llama-3-70b",
    "a100:llama-2-7b",
    "a40:llama-2-7b",
    "h100:llama-2-7b",
    "h100:llama-3-8b",
    "4xh100:llama-3-70b",
    "h200:llama-3-8b",
    "b200:llama-3-8b",
    "l40s:llama-3-8b",
    "a10g:llama-3-8b",
)


def pairs() -> list[tuple[str, str]]:
    """What was measured, whatever the tensor parallelism."""
    return sorted({(each.gpu, each.model) for each in measured_times()[1]})


def figures(errors: Iterable[Errors]) -> dict[str, float]:
    """Mean, worst and how many are beyond a tenth."""
    off = np.abs(np.concatenate([each.relative for each in errors]))
    return {
        "mean": float(off.mean()),
        "worst": float(off.max()),
        "beyond": int((off > 0.1).sum()),
        "count": len(off),
    }


def left_out() -> list[dict[str, Any]]:
    """Errors at numbers of tokens that were left out, for each measured pair."""
    return [
        {"gpu": gpu, "model": model, "degree": degree}
        | figures(left_out_errors(Measured(gpu, model, degree), half) for half in HALVES)
        for gpu, model in pairs()
        for degree in DEGREES
    ]


def method() -> list[dict[str, Any]]:
    """The same for all pairs together, by the share of the rise that comes in steps."""
    return [
        {"half": half, "in_steps": share}
        | figures(left_out_errors(each, half, share) for each in measured_times()[1])
        for share in SHARES
        for half in HALVES
    ]


def derived() -> list[dict[str, Any]]:
    """Errors of measured pairs that are derived from what is then the nearest."""
    rows = []
    for gpu, model in pairs():
        for degree in DEGREES:
            source, errors = derived_errors(Measured(gpu, model, degree))
            rows.append(
                {"gpu": gpu, "model": model, "degree": degree, "source_gpu": source.gpu}
                | {"source_model": source.model, "bias": float(errors.relative.mean())}
                | figures([errors])
            )
    return rows


def step_ms(chosen: Preset, prefill: int, decode: int) -> float:
    """ms of a step that prefills a prompt and decodes for requests with 500 tokens of context."""
    requests = decode + (prefill > 0)
    work = np.array([[prefill, decode, prefill + 500 * decode, requests, prefill**2 / 2]])
    return 1000.0 * float(chosen.cost.seconds(work)[0])


def presets() -> list[dict[str, Any]]:
    """What a step takes and what fits."""
    chosen = [preset(*name.split(":")) for name in SHOWN]
    return [
        {
            "preset": each.name,
            "derived": each.derived,
            "one_ms": step_ms(each, 0, 1),
            "full_ms": step_ms(each, 0, 64),
            "prompt_ms": step_ms(each, 2048, 0),
            "kv_ns": 1e9 * each.cost.kv_s,
            "kv_blocks": each.engine.kv_blocks,
            "slots": each.engine.slots,
            "token_budget": each.engine.token_budget,
            "sources": list(each.sources),
        }
        for each in chosen
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    arguments = parser.parse_args()
    tables = {"steps": presets(), "left out": left_out(), "method": method(), "derived": derived()}
    rows = [{"table": name, **row} for name, table in tables.items() for row in table]
    if arguments.json:
        json.dump(rows, sys.stdout, indent=1)
        return
    for row in rows:
        print("  ".join(_said(key, value) for key, value in row.items() if key != "sources"))


def _said(name: str, value: Any) -> str:
    return f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"


if __name__ == "__main__":
    main()
