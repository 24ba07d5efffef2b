"""Where requests come from: tables of prompts with answer lengths, and made-up lengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bench.figures.cell import Traffic
from lengthwise.advise.sweep import capacity
from lengthwise.compare.client import ReplayRequest
from lengthwise.compare.rounds import choose_requests
from lengthwise.compare.specs import Burst, Capacity, Load, Rate, arrival_times
from lengthwise.compare.virtual import engine_prompt
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.prediction import Predictor, Prompt
from lengthwise.predict.tokenizer import REFERENCE, PromptTokenizer, load_tokenizer
from lengthwise.predict.train import train
from lengthwise.simulate.engine import EngineSettings, StepCost
from lengthwise.simulate.predictions import noisy
from lengthwise.workload.dataset import Dataset, load_dataset
from lengthwise.workload.trace import Trace, load_trace

VICUNA: Final = "prompts_alpaca_vicuna7b.parquet"
CASTILLO: Final = "prompts_castillo.parquet"
CONTEXT: Final = 8192
LEARNT_FROM: Final = 10_000  #: train rows, at most

_DIGITS = 6  # of predictions, as in virtual time: see compare/virtual.py


@dataclass(frozen=True)
class Sources:
    """The data at hand.

    Attributes:
        data: a folder of tables and traces.
        say: told what takes time.
    """

    data: Path
    say: Callable[[str], None] = lambda line: None

    def has(self, files: Sequence[str]) -> bool:
        """Whether all of these files are there."""
        return all((self.data / name).is_file() for name in files)

    @cache  # noqa: B019 - there is one, for as long as the command runs
    def prompts(self, file: str, split: str, model: str | None = None) -> Dataset:
        """Prompts of a part of a table, of one model without those that it answered in a loop."""
        where = {} if model is None else {"model": model, "degenerate": "False"}
        limit = LEARNT_FROM if split == "train" else None
        return load_dataset(
            self.data / file, split=split, where=where, limit=limit, prompt_tokens=True
        )

    @cache  # noqa: B019
    def predictor(self, file: str, model: str | None = None) -> Predictor:
        """The default predictor, trained on train rows."""
        self.say(f"training on {file}" + (f", {model}" if model else ""))
        return train(self.prompts(file, "train", model), tokenizer(), Recipe(seed=0))

    @lru_cache(maxsize=32)  # noqa: B019
    def drawn(self, file: str, count: int, seed: int) -> Traffic:
        """Test prompts drawn as `lengthwise bench` draws them, all at once."""
        requests, _ = choose_requests(
            self.prompts(file, "test"), tokenizer(), count=count, max_model_len=CONTEXT, seed=seed
        )
        prompts = [engine_prompt(each) for each in requests]
        hashes, offsets = shared_blocks(prompts, BLOCK)
        trace = of_lengths(
            [each.prompt_tokens for each in requests], [each.answer_tokens for each in requests]
        )
        trace = replace(trace, block_hashes=hashes, block_offsets=offsets, hash_tokens=BLOCK)
        return Traffic(trace, predictions(self.predictor(file), requests), prompts)

    @lru_cache(maxsize=32)  # noqa: B019
    def lengths(self, count: int, seed: int, tau: float = 0.5) -> Traffic:
        """Real lengths (Vicuna-7B) drawn with replacement; predictions have a Kendall tau."""
        table = self.prompts(VICUNA, "test")
        assert table.prompt_tokens is not None
        rows = np.random.default_rng(seed).integers(len(table.prompts), size=count)
        trace = of_lengths(table.prompt_tokens[rows], table.lengths[rows])
        return Traffic(trace, noisy_predictions(trace, tau, seed))

    @cache  # noqa: B019
    def trace(self, file: str, count: int) -> Trace:
        """The first requests of recorded traffic."""
        return load_trace(self.data / file, limit=count)


BLOCK: Final = 16  #: tokens of a KV block on a GPU


@cache
def tokenizer() -> PromptTokenizer:
    """The built-in model's, whose tokens predictors read."""
    return load_tokenizer(REFERENCE)


def of_lengths(
    prompts: Sequence[int] | NDArray[np.int64], answers: Sequence[int] | NDArray[np.int64]
) -> Trace:
    """Requests of these lengths, of one token at least, all at once."""
    return Trace(
        name="requests",
        arrival_s=np.zeros(len(prompts)),
        prompt_tokens=np.maximum(np.array(prompts, np.int64), 1),
        output_tokens=np.maximum(np.array(answers, np.int64), 1),
        rejected=[],
        layout="prompts",
    )


def predictions(predictor: Predictor, requests: Sequence[ReplayRequest]) -> NDArray[np.float64]:
    """What a predictor says of each prompt, shape [n, 5]."""
    found = [predictor.predict(Prompt(each.prompt_ids, {})) for each in requests]
    return significant(np.array(found))


def noisy_predictions(trace: Trace, tau: float, seed: int) -> NDArray[np.float64]:
    """The truth with so much noise that its Kendall tau is about this; 1 is the truth."""
    if tau == 1.0:
        return np.repeat(trace.output_tokens.astype(np.float64)[:, None], 5, axis=1)
    return significant(noisy(trace.output_tokens, tau, seed))


def significant(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rounded to the digits that do not depend on the processor."""
    flat = [float(f"{value:.{_DIGITS}g}") for value in values.ravel()]
    return np.array(flat).reshape(values.shape)


def shared_blocks(
    prompts: Sequence[Sequence[int]], size: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Numbers of the prompts' full blocks, as in `Trace`: the same for the same beginning."""
    known: dict[tuple[int, tuple[int, ...]], int] = {}
    hashes, offsets = [], [0]
    for prompt in prompts:
        before = -1
        for start in range(0, len(prompt) - size + 1, size):
            block = (before, tuple(prompt[start : start + size]))
            before = known.setdefault(block, len(known))
            hashes.append(before)
        offsets.append(len(hashes))
    return np.array(hashes, np.int64), np.array(offsets, np.int64)


def parse_load(load: str) -> Load:
    """A multiple of the capacity, `burst`, or `rate=R` in requests a second."""
    if load == "burst":
        return Burst()
    if load.startswith("rate="):
        return Rate(float(load.removeprefix("rate=")))
    return Capacity(float(load))


def arriving(
    traffic: Traffic,
    load: str,
    cost: StepCost,
    engine: EngineSettings,
    seed: int,
    cv: float = 1.0,
) -> Traffic:
    """The same requests under a load, as `lengthwise bench` sends them."""
    trace = traffic.trace
    times = arrival_times(
        parse_load(load),
        len(trace),
        cv=cv,
        seed=seed,
        capacity_requests_per_s=capacity(trace, cost, engine),
    )
    assert times is not None
    # A logarithm's last digit is not the same on every machine.
    return replace(traffic, trace=trace.with_arrivals(np.round(times, 9)))


def stretched(traffic: Traffic, load: str, cost: StepCost, engine: EngineSettings) -> Traffic:
    """Recorded arrivals, as fast as the load asks for."""
    trace = traffic.trace
    assert math.isfinite(trace.rate)
    faster = trace.scaled(float(load) * capacity(trace, cost, engine) / trace.rate)
    return replace(traffic, trace=faster.with_arrivals(np.round(faster.arrival_s, 9)))
