"""Does a predictor trained on one model's answers order another's? On common prompts only.

    python bench/predictor_transfer.py --json \
        Llama-8B=answers.parquet:model=meta-llama/Llama-3.1-8B-Instruct \
        Qwen-7B=answers.parquet:model=Qwen/Qwen2.5-7B-Instruct-1M

Every source is cut down to the prompts that all of them have, so that rows and columns of the
matrix differ in whose answers they are and in nothing else. A row is trained on the answers of its
source to the train prompts; each column is measured on the test prompts. `lengths_tau` is the tau
of the two models' lengths on these: what a perfect predictor of the one could reach on the other.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from typing import Any

SPLITS = ("train", "test")


def common_rows(sources: list[str]) -> dict[str, dict[str, Any]]:
    """By source and split: the rows of prompts that all sources have, in one order."""
    from lengthwise.errors import InputError
    from lengthwise.workload.dataset import load_dataset, parse_where

    found: dict[str, dict[str, Any]] = {}
    for source in sources:
        label, equals, place = source.partition("=")
        path, _, condition = place.partition(":")
        if not equals:
            raise InputError(f"{source}: give LABEL=PATH or LABEL=PATH:COLUMN=VALUE")
        where = parse_where([condition] if condition else None)
        found[label] = {split: load_dataset(path, split=split, where=where) for split in SPLITS}
    for split in SPLITS:
        tables = [tables[split] for tables in found.values()]
        common = sorted(set.intersection(*(set(table.prompts) for table in tables)))
        if not common:
            raise InputError(f"no prompt of the split {split} is in all sources")
        for tables_of in found.values():
            table = tables_of[split]
            places = {prompt: row for row, prompt in enumerate(table.prompts)}
            rows = [places[prompt] for prompt in common]
            tables_of[split] = replace(
                table,
                prompts=common,
                lengths=table.lengths[rows],
                samples=None if table.samples is None else [table.samples[row] for row in rows],
                rows=table.rows[rows],
                tasks=None,
                selection=f"{table.selection}, common prompts",
            )
    return found


def transfer(sources: list[str], seed: int) -> list[dict[str, Any]]:
    """One row for each pair of sources."""
    from lengthwise.predict.evaluate import evaluate
    from lengthwise.predict.kendall import kendall_tau
    from lengthwise.predict.kinds import Recipe
    from lengthwise.predict.tokenizer import load_tokenizer
    from lengthwise.predict.train import train

    tokenizer = load_tokenizer("reference")
    tables = common_rows(sources)
    rows = []
    for learnt, own in tables.items():
        print(f"training on {learnt}", file=sys.stderr)
        predictor = train(own["train"], tokenizer, Recipe(seed=seed))
        for asked, others in tables.items():
            result = evaluate(predictor, others["test"], tokenizer, seed=seed)
            rows.append(
                {
                    "trained_on": learnt,
                    "tested_on": asked,
                    "train_rows": len(own["train"].prompts),
                    "test_rows": result.rows,
                    "tau": result.tau,
                    "tau_low": result.tau_low,
                    "tau_high": result.tau_high,
                    "coverage_80": result.coverage_80,
                    "lengths_tau": kendall_tau(own["test"].lengths, others["test"].lengths),
                }
            )
    return rows


def main() -> int:
    """Measure, then print."""
    from lengthwise.errors import LengthwiseError

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("sources", nargs="+", metavar="LABEL=PATH[:COLUMN=VALUE]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    try:
        rows = transfer(arguments.sources, arguments.seed)
    except LengthwiseError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    for row in rows:
        print(
            f"{row['trained_on']:>16} → {row['tested_on']:16} tau {row['tau']:.3f} "
            f"({row['tau_low']:.3f}–{row['tau_high']:.3f}), the lengths' {row['lengths_tau']:.3f}, "
            f"{row['coverage_80']:.0%} covered"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
