"""Traffic that changes under a predictor: what it costs, and what one retraining brings back.

    python bench/drift.py answers.parquet --model meta-llama/Llama-3.1-8B-Instruct --json

A predictor learns from one data set of a table (`--before`, Dolly's questions) and then serves
prompts of others (`--after`, code), by the rules of a server with `--learn`: its rolling tau is
watched on the first 500 answers, and below the floor the order is that of arrival; a new predictor
learns from the older half of these 500 and is placed if it is better on the newer half. The
requests from the 501st on are simulated, at loads around the capacity, in order of arrival
(`fcfs`), with the predictor that drifted and its floor (`drifted`), and with the new one
(`retrained`). Ratios are mean end-to-end latency over fcfs's, with the smallest and largest of the
seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.grid import COST
from bench.spread import spread

from lengthwise.errors import LengthwiseError
from lengthwise.learn.acceptance import compare, tau_or_0
from lengthwise.policy.discipline import make_discipline
from lengthwise.predict.kinds import Recipe
from lengthwise.predict.prediction import Predictor, Prompt
from lengthwise.predict.tokenizer import PromptTokenizer, load_tokenizer
from lengthwise.predict.train import train
from lengthwise.simulate.cell import Cell, arrivals_of
from lengthwise.simulate.engine_settings import EngineSettings
from lengthwise.simulate.simulation import simulate
from lengthwise.vllm.counters import Counters
from lengthwise.vllm.rolling_tau import RollingTau
from lengthwise.vllm.settings import Settings
from lengthwise.workload.dataset import Dataset, load_dataset
from lengthwise.workload.trace import Trace

ENGINE = EngineSettings(slots=32)
LOADS = ("0.9", "1.05", "1.2")
WATCHED = 500  # requests before what is compared

Scores = NDArray[np.float64]


def rows_of(path: str, model: str, datasets: list[str]) -> list[Dataset]:
    """The rows of a model, a table for each data set."""
    return [load_dataset(path, where={"model": model, "dataset": dataset}) for dataset in datasets]


def mixed(tables: list[Dataset], seed: int) -> Dataset:
    """The rows of several tables in a random order."""
    prompts = [prompt for table in tables for prompt in table.prompts]
    lengths = np.concatenate([table.lengths for table in tables])
    order = np.random.default_rng(seed).permutation(len(prompts))
    return Dataset(
        name="+".join(table.selection for table in tables),
        prompts=[prompts[row] for row in order],
        lengths=lengths[order],
        samples=None,
        rows=np.arange(1, len(prompts) + 1),
        rejected=[],
    )


def predictions(predictor: Predictor, encoded: list[list[int]]) -> Scores:
    """Score, expected, low, median and high of each prompt."""
    found = [predictor.predict(Prompt(ids, {})) for ids in encoded]
    return np.array([(p.score, p.expected, p.low, p.median, p.high) for p in found])


def is_below_floor(scores: Scores, lengths: NDArray[np.int64]) -> tuple[bool, float | None]:
    """What the scheduler's own watch says after these answers."""
    watch = RollingTau(Counters())
    watch.set_floor(Settings().tau_floor)
    for number, (score, length) in enumerate(zip(scores, lengths, strict=True)):
        watch.ended(number, float(score), int(length))
    return watch.below_floor, watch.tau


def run_seed(
    before: Predictor, code: list[Dataset], tokenizer: PromptTokenizer, seed: int
) -> list[dict[str, Any]]:
    """One order of the requests, at all loads."""
    stream = mixed(code, seed)
    encoded = tokenizer.encode_chat_many(stream.prompts)
    lengths = stream.lengths
    drifted = predictions(before, encoded)
    below, rolling = is_below_floor(drifted[:WATCHED, 0], lengths[:WATCHED])

    half = WATCHED // 2
    candidate = train(stream.first(half), tokenizer, Recipe(seed=seed))
    renewed = predictions(candidate, encoded)
    verdict = compare(
        lengths[half:WATCHED], renewed[half:WATCHED, 0], drifted[half:WATCHED, 0], seed
    )
    later = slice(WATCHED, None)
    base = {
        "seed": seed,
        "rolling_tau": rolling,
        "below_floor": below,
        "accepted": bool(verdict.is_better),
        "tau_drifted": tau_or_0(lengths[later], drifted[later, 0]),
        "tau_retrained": tau_or_0(lengths[later], renewed[later, 0]),
    }
    prompts = np.array([len(ids) for ids in encoded], np.int64)[later]
    trace = Trace("drift", np.zeros(len(prompts)), prompts, lengths[later], [], "prompts")
    found = []
    for load in LOADS:
        offered = arrivals_of(Cell("drift", {}, load, COST, ENGINE, cv=1.0, seed=seed), trace)
        means = {}
        for name, scores, follows in (
            ("fcfs", drifted, False),
            ("drifted", drifted, not below),
            ("retrained", renewed if verdict.is_better else drifted, True),
        ):
            discipline = make_discipline("ltr" if follows else "fcfs")
            done = simulate(offered, discipline, COST, ENGINE, predictions=scores[later])
            means[name] = float((done.requests["finish_s"] - done.requests["arrival_s"]).mean())
        found.append(
            base
            | {
                "load": load,
                "drifted_over_fcfs": means["drifted"] / means["fcfs"],
                "retrained_over_fcfs": means["retrained"] / means["fcfs"],
            }
        )
    return found


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By load: medians, smallest and largest over the seeds."""
    found = []
    for load in LOADS:
        own = [row for row in rows if row["load"] == load]
        names = ("tau_drifted", "tau_retrained", "drifted_over_fcfs", "retrained_over_fcfs")
        times = {name: sum(row[name] for row in own) for name in ("below_floor", "accepted")}
        found.append({"load": load, "seeds": len(own), **spread(own, names), **times})
    return found


def main() -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", help="with the columns model and dataset")
    parser.add_argument("--model", required=True, help="whose answers")
    parser.add_argument("--before", default="DollyDataset", help="what is learnt from")
    parser.add_argument("--after", default="Mbpp,Apps,BigCodeBench,DS1000", help="what is served")
    parser.add_argument("--seeds", type=int, default=5, help="of the order and the arrivals")
    parser.add_argument("--json", action="store_true", help="JSON on stdout")
    arguments = parser.parse_args()
    tokenizer = load_tokenizer("reference")
    try:
        known = rows_of(arguments.table, arguments.model, [arguments.before])[0]
        code = rows_of(arguments.table, arguments.model, arguments.after.split(","))
        before = train(known, tokenizer)
        rows = [
            row
            for seed in range(arguments.seeds)
            for row in run_seed(before, code, tokenizer, seed)
        ]
    except LengthwiseError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = summary(rows)
    if arguments.json:
        print(json.dumps(result, indent=1))
        return 0
    for row in result:
        print(
            f"load {row['load']:5} tau {row['tau_drifted']:.2f} -> {row['tau_retrained']:.2f}   "
            f"mean / fcfs {row['drifted_over_fcfs']:.2f} -> {row['retrained_over_fcfs']:.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
