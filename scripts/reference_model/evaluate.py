"""What the reference model's answers are like: python -m scripts.reference_model.evaluate.

Serves the model with vLLM, samples two answers to each of many prompts, and prints the figures that
stand in the model card. The prompts have a seed of their own, but the short ones recur in training.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from lengthwise.errors import LengthwiseError, missing_extra
from lengthwise.reference import model_path
from lengthwise.reference.prompts import ReferencePrompt, generate

EVALUATION_SEED = 1_000_003  # no other part of Lengthwise draws prompts from it
LONGEST_ANSWER = 512


class Answer(NamedTuple):
    """One sampled answer."""

    text: str
    tokens: int  # the end token included
    ended: bool  # by the end token, not by the limit


class Samples(NamedTuple):
    """Two answers to each prompt, and what it took to sample them."""

    prompt_tokens: list[int]
    first: list[Answer]
    second: list[Answer]
    seconds: float


def sample(
    model: Path, prompts: Sequence[ReferencePrompt], data_type: str, batch: int, seed: int
) -> Samples:
    """Two answers to each prompt by offline vLLM, at the model's own temperature.

    Raises:
        InputError: vLLM is not installed.
    """
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    try:
        from vllm import LLM
    except ImportError as error:
        raise missing_extra("vllm", "cpu") from error
    engine = LLM(
        model=str(model),
        dtype=data_type,
        max_model_len=2048,
        max_num_seqs=batch,
        block_size=32,  # the least that the CPU attention takes
        enforce_eager=True,
        seed=seed,
    )
    settings = engine.get_default_sampling_params()
    settings.n, settings.max_tokens = 2, LONGEST_ANSWER
    started = time.perf_counter()
    outputs = engine.chat([[{"role": "user", "content": p.text}] for p in prompts], settings)
    seconds = time.perf_counter() - started
    answers = [
        [Answer(o.text, len(o.token_ids), o.finish_reason == "stop") for o in output.outputs]
        for output in outputs
    ]
    return Samples(
        [len(output.prompt_token_ids) for output in outputs],
        [pair[0] for pair in answers],
        [pair[1] for pair in answers],
        seconds,
    )


def parts_written(answer: str) -> int:
    """The number of the answer's last numbered line, 0 where it has none."""
    numbers = re.findall(r"^(\d+)\. ", answer, flags=re.MULTILINE)
    return int(numbers[-1]) if numbers else 0


def figures(prompts: Sequence[ReferencePrompt], samples: Samples) -> dict[str, float]:
    """The model card's figures; lengths in tokens, taus are Kendall's tau-b."""
    from scipy.stats import kendalltau

    first: NDArray[np.int64] = np.array([a.tokens for a in samples.first])
    second: NDArray[np.int64] = np.array([a.tokens for a in samples.second])
    both = [*samples.first, *samples.second]
    lengths = np.concatenate([first, second])
    counted = [
        parts_written(answer.text) == prompt.parts
        for prompt, answer in zip(prompts, samples.first, strict=True)
        if prompt.parts
    ]
    kept_plan = [
        parts_written(answer.text) == int(plan.group(1))
        for answer in both
        if (plan := re.match(r"(\d+) \w+:\n", answer.text))
    ]
    percentiles = {f"p{q}": float(np.percentile(lengths, q)) for q in (1, 10, 50, 90, 99)}
    return {
        "prompts": len(prompts),
        "shortest": int(lengths.min()),
        **percentiles,
        "longest": int(lengths.max()),
        "mean": float(lengths.mean()),
        "squared_coefficient_of_variation": float(lengths.var() / lengths.mean() ** 2),
        "ended_share": float(np.mean([a.ended for a in both])),
        "tau_between_samples": float(kendalltau(first, second).statistic),
        "tau_of_prompt_length": float(kendalltau(samples.prompt_tokens, first).statistic),
        "asked_number_kept_share": float(np.mean(counted)),
        "plan_kept_share": float(np.mean(kept_plan)),
        "output_tokens_per_s": float(lengths.sum() / samples.seconds),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m scripts.reference_model.evaluate", description=__doc__
    )
    parser.add_argument("--model", type=Path, default=model_path())
    parser.add_argument("--prompts", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=16, help="requests that run at once")
    parser.add_argument("--dtype", default="auto", help="as vLLM takes it")
    parser.add_argument("--seed", type=int, default=EVALUATION_SEED)
    parser.add_argument("--show", type=int, default=0, help="print so many answers, on stderr")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    console, messages = Console(), Console(stderr=True)
    try:
        prompts = generate(options.prompts, options.seed)
        samples = sample(options.model, prompts, options.dtype, options.batch, options.seed)
    except LengthwiseError as error:
        messages.print(f"error: {error}", style="red")
        return error.exit_code
    for prompt, answer in zip(prompts[: options.show], samples.first, strict=False):
        messages.print(prompt.text, style="bold")
        messages.print(answer.text, markup=False)
    results = figures(prompts, samples)
    if options.json:
        print(json.dumps(results, indent=2))
        return 0
    table = Table("figure", "value")
    for name, value in results.items():
        table.add_row(name.replace("_", " "), f"{value:.3g}" if value < 10 else f"{value:.0f}")
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
