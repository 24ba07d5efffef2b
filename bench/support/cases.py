"""Requests of several kinds, what is predicted of them, memory for them, and how long they took.

Lengths are real ones (of the folder of data) or log-normal; predictions are the true length with
log-normal noise; memory is a multiple of what a full batch holds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from lengthwise.advise.sweep import capacity
from lengthwise.policy.discipline import make_discipline
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.simulation import simulate
from lengthwise.workload.dataset import load_dataset
from lengthwise.workload.trace import Trace, load_trace

SIGMA: Final = 1.1  # of the predictions' noise
PLACES: Final = 512  # in the worker
MEMORY: Final = ("ample", "1.5", "1.0")  # KV blocks, as a multiple of what a full batch holds
RATIOS: Final = ("mean", "p99", "s_per_token", "ttft", "longest_wait", "worst_wait")

Lengths = tuple[NDArray[np.int64], NDArray[np.int64]]  # of prompts and answers
Noise = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """Requests of a kind: how many run at once, and which loads are asked for."""

    name: str
    slots: int
    lengths: Callable[[Path], Lengths]


def _prompts(file: str, **where: str) -> Callable[[Path], Lengths]:
    def read(data: Path) -> Lengths:
        table = load_dataset(data / file, where=where or None, prompt_tokens=True)
        assert table.prompt_tokens is not None
        return np.array(table.prompt_tokens), np.array(table.lengths)

    return read


def _trace(file: str) -> Callable[[Path], Lengths]:
    def read(data: Path) -> Lengths:
        trace = load_trace(data / file)
        return trace.prompt_tokens, trace.output_tokens

    return read


def _log_normal(data: Path) -> Lengths:
    """σ 1.4, mean about 650, at most 8,000 tokens."""
    answers = np.random.default_rng(1).lognormal(np.log(650) - 0.93, 1.4, 20_000)
    return np.full(len(answers), 200), np.clip(answers, 1, 8000).astype(np.int64)


CASES = (
    Case(
        "castillo",
        64,
        _prompts("prompts_castillo.parquet", model="meta-llama/Llama-3.1-8B-Instruct"),
    ),
    Case("log-normal", 64, _log_normal),
    Case("vicuna", 32, _prompts("prompts_alpaca_vicuna7b.parquet")),
    Case("azure-conversations", 64, _trace("trace_azure2023_conv.parquet")),
    Case("azure-code", 64, _trace("trace_azure2023_code.parquet")),
)


def said(
    answers: NDArray[np.int64],
    held_out: NDArray[np.int64],
    seed: int,
    raw: bool,
    sigma: float = SIGMA,
) -> Noise:
    """Score, expected, low, median and high of noisy predictions, shape [n, 5].

    The noise of a smaller `sigma` is a part of that of SIGMA: a probe sees the prompt, too.
    """
    noise = np.random.default_rng([seed, 11]).standard_normal(len(answers))
    own = np.random.default_rng([seed, 12]).standard_normal(len(answers))
    part = min(sigma / SIGMA, 1.0)
    score = np.log(answers) + sigma * (part * noise + np.sqrt(1.0 - part**2) * own)
    if raw:
        noisy, spread = np.exp(score), np.exp(float(ndtri(0.9)) * sigma)
        return np.stack([score, noisy, noisy / spread, noisy, noisy * spread], axis=1)
    lengths = np.sort(held_out).astype(np.float64)
    distance = (score[:, None] - np.log(lengths)) / sigma
    weight = np.exp(-0.5 * (distance**2 - (distance**2).min(axis=1, keepdims=True)))
    weight /= weight.sum(axis=1, keepdims=True)
    below = np.cumsum(weight, axis=1)

    def quantile(share: float) -> Noise:
        found: Noise = lengths[np.minimum((below < share).sum(axis=1), len(lengths) - 1)]
        return found

    mean = weight @ lengths
    return np.stack([score, mean, quantile(0.1), quantile(0.5), quantile(0.9)], axis=1)


def engine_of(slots: int, trace: Trace, memory: str) -> EngineSettings:
    """With so much KV memory."""
    if memory == "ample":
        return EngineSettings(slots=slots, max_seqs=PLACES)
    weight = trace.output_tokens / trace.output_tokens.sum()
    held = ((trace.prompt_tokens + 0.5 * trace.output_tokens) * weight).sum()
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    blocks = max(float(memory) * slots * held, longest + 1) / 16
    return EngineSettings(slots=slots, max_seqs=PLACES, kv_blocks=int(blocks) + 1)


def measured_capacity(trace: Trace, cost: StepCost, engine: EngineSettings) -> float:
    """Requests a second that the engine does while any waits, of a burst of these."""
    steps = simulate(trace, make_discipline("fcfs"), cost, engine, log_steps=True).steps
    busy = steps[steps["waiting"] > 0]
    if len(busy) == 0:
        return capacity(trace, cost, engine)
    rate = busy["decode_tokens"].sum() / busy["duration_s"].sum()
    return float(rate / trace.output_tokens.mean())


def latencies(
    latency_s: NDArray[np.float64],
    first_s: NDArray[np.float64],
    gap_s: NDArray[np.float64],
    tokens: NDArray[np.int64],
) -> dict[str, float]:
    """RATIOS of requests: how long each took, to its first token, between two tokens at most."""
    wait_s = np.maximum(first_s, gap_s)
    return {
        "mean": float(latency_s.mean()),
        "p99": float(np.percentile(latency_s, 99)),
        "s_per_token": float((latency_s / tokens).mean()),
        "ttft": float(first_s.mean()),
        "longest_wait": float(wait_s.mean()),
        "worst_wait": float(wait_s.max()),
    }
