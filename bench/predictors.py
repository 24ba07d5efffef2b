"""The bars of the predictors that need no GPU, measured on test rows.

    python bench/predictors.py --data ../shared/data --json

Each row is trained on at most 10,000 train rows and evaluated on the test rows, one prompt at a
time on one core. Below the default predictor on three models stand, on the same rows of the first,
other losses and other kinds, and what its quantiles are worth on data of another source.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lengthwise.predict.kinds import Recipe

ROWS = 10_000


class Source(NamedTuple):
    """Rows of one model's answers, and the bars for the default predictor."""

    label: str
    file: str
    where: dict[str, str]
    floor: float | None = None  # tau
    reach: float | None = None


VICUNA = Source("Vicuna-7B", "prompts_alpaca_vicuna7b.parquet", {}, 0.54, 0.58)
CASTILLO = [
    Source(
        f"CASTILLO {name}",
        "prompts_castillo.parquet",
        {"model": f"meta-llama/{name}-Instruct"},
        *bars,
    )
    for name, bars in (("Llama-3.1-8B", (0.48, 0.56)), ("Llama-3.3-70B", (0.55, 0.64)))
]
OTHERS = [Source("davinci-003", "responses_alpaca_davinci003_20k.parquet", {}), CASTILLO[0]]


def buckets_of(longest: int, count: int) -> int:
    """The size of a bucket, so that lengths up to the longest fall into so many."""
    return -(-(longest + 1) // count)


def measurements(folder: Path, seed: int) -> Iterator[dict[str, Any]]:
    """One row after the other."""
    from lengthwise.predict.kinds import Recipe

    tables = Tables(folder)
    default = Recipe(seed=seed)
    for source in (VICUNA, *CASTILLO):
        yield tables.measure(source, source, default)
    longest = int(tables.rows(VICUNA, "train").lengths.max())
    for label, recipe in (
        ("listnet", Recipe(loss="listnet", seed=seed)),
        ("pairwise", Recipe(loss="pairwise", seed=seed)),
        ("listmle, buckets of 10 tokens", Recipe(bucket=10, seed=seed)),
        ("regress", Recipe("regress", seed=seed)),
        ("quantile", Recipe("quantile", seed=seed)),
        ("classify, 10 buckets", Recipe("classify", bucket=buckets_of(longest, 10), seed=seed)),
        ("classify, buckets of 10 tokens", Recipe("classify", bucket=10, seed=seed)),
        ("classify, buckets of 1 token", Recipe("classify", bucket=1, seed=seed)),
    ):
        yield {**tables.measure(VICUNA, VICUNA, recipe), "label": f"Vicuna-7B: {label}"}
    for other in OTHERS:
        row = tables.measure(VICUNA, other, default)
        yield {**row, "label": f"Vicuna-7B, asked about {other.label}"}


class Tables:
    """Reads each table once; trains and evaluates."""

    def __init__(self, folder: Path) -> None:
        from lengthwise.predict.tokenizer import load_tokenizer

        self._folder = folder
        self._tokenizer = load_tokenizer("reference")
        self._rows: dict[tuple[str, str], Any] = {}
        self._trained: dict[tuple[str, Recipe], Any] = {}

    def rows(self, source: Source, split: str) -> Any:
        """The train or the test rows of a source."""
        from lengthwise.workload.dataset import load_dataset

        key = source.label, split
        if key not in self._rows:
            self._rows[key] = load_dataset(
                self._folder / source.file,
                split=split,
                where=source.where,
                limit=ROWS if split == "train" else None,
            )
        return self._rows[key]

    def measure(self, learnt: Source, asked: Source, recipe: Recipe) -> dict[str, Any]:
        """Train on the train rows of one source, evaluate on the test rows of another."""
        from lengthwise.predict.evaluate import evaluate
        from lengthwise.predict.train import train

        key = learnt.label, recipe
        if key not in self._trained:
            self._trained[key] = train(self.rows(learnt, "train"), self._tokenizer, recipe)
        metadata = self._trained[key].metadata
        print(f"{learnt.label} → {asked.label}, {metadata.kind}", file=sys.stderr)
        result = evaluate(self._trained[key], self.rows(asked, "test"), self._tokenizer)
        default = (recipe.kind, recipe.loss, recipe.bucket) == ("lexical", None, None)
        same = default and learnt == asked
        return {
            "label": asked.label,
            "kind": metadata.kind,
            "loss": metadata.loss,
            "bucket": metadata.bucket,
            "trained_rows": metadata.training.rows,
            "floor": asked.floor if same else None,
            "reach": asked.reach if same else None,
            **dataclasses.asdict(result),
        }


def main() -> int:
    """Measure, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="its folder")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = list(measurements(arguments.data, arguments.seed))
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    for row in rows:
        print(
            f"{row['label']:44} tau {row['tau']:.3f} ({row['tau_low']:.3f}–{row['tau_high']:.3f}) "
            f"{row['coverage_80']:.1%} covered, {row['microseconds_p50']:.0f} µs, "
            f"p99 {row['microseconds_p99']:.0f} µs, trained in {row['training_seconds']:.1f} s"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
