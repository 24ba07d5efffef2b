"""The bars of the predictors that need no GPU, measured on test rows.

    python bench/predictors.py --data ../shared/data --json
    python bench/predictors.py --encoder build/encoder …      # what `train --kind encoder` made

Each row is trained on at most 10,000 train rows and evaluated on the test rows, one prompt at a
time on one core. Below the default predictor on three models stand, on the same rows of the first,
other losses and other kinds, what more rows and more answers a prompt are worth, what its quantiles
are worth on data of another source, and predictors as others published them (see published.py).
An encoder, which takes long to train, is measured beside the default of as many rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.published import BETAS, Clairvoyant, LogTPredictor

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
    rows: int | None = ROWS  # to learn from, at most
    answers: str | None = None  # columns of lengths of several answers to each prompt


VICUNA = Source("Vicuna-7B", "prompts_alpaca_vicuna7b.parquet", {}, 0.54, 0.58)
# The same prompts were answered at other temperatures, too: what is evaluated is the first.
ANSWERS = "response_tokens,tokens_t00,tokens_t03,tokens_t05"
FOUR = VICUNA._replace(label="Vicuna-7B: four answers a prompt", answers=ANSWERS)
ALL = VICUNA._replace(label="Vicuna-7B: all train rows", rows=None)
ALL_FOUR = FOUR._replace(label="Vicuna-7B: all train rows, four answers a prompt", rows=None)
CASTILLO = [
    Source(
        f"CASTILLO {name}",
        "prompts_castillo.parquet",
        {"model": f"meta-llama/{name}-Instruct"},
        *bars,
    )
    for name, bars in (("Llama-3.1-8B", (0.53, 0.56)), ("Llama-3.3-70B", (0.57, 0.64)))
]
OTHERS = [Source("davinci-003", "responses_alpaca_davinci003_20k.parquet", {}), CASTILLO[0]]


def buckets_of(longest: int, count: int) -> int:
    """The size of a bucket, so that lengths up to the longest fall into so many."""
    return -(-(longest + 1) // count)


def measurements(folder: Path, seed: int, encoder: Path | None) -> Iterator[dict[str, Any]]:
    """One row after the other; of a trained encoder, too, where there is one."""
    from lengthwise.predict.kinds import Recipe

    tables = Tables(folder)
    default = Recipe(seed=seed)
    for source in (VICUNA, *CASTILLO):
        yield tables.measure(source, source, default)
    for source in (FOUR, ALL, ALL_FOUR):
        row = tables.measure(source, VICUNA, default)
        yield {**row, "label": source.label}
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

    if encoder is not None:
        yield from tables.encoder(encoder, default)
    for source in (VICUNA, CASTILLO[0]):
        yield from tables.clairvoyant(source)
    yield tables.tie(FOUR)


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
            learnt = split == "train"
            self._rows[key] = load_dataset(
                self._folder / source.file,
                split=split,
                where=source.where,
                limit=source.rows if learnt else None,
                length_column=source.answers if learnt else None,
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
        rows = self.rows(asked, "test")
        result = evaluate(self._trained[key], rows, self._tokenizer)
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
            "microseconds_per_100_tokens": microseconds_per_100_tokens(
                self._trained[key], rows, self._tokenizer
            ),
            **dataclasses.asdict(result),
        }

    def encoder(self, folder: Path, default: Recipe) -> Iterator[dict[str, Any]]:
        """A trained encoder, and the default that has learnt from as many rows."""
        from lengthwise.predict.evaluate import evaluate
        from lengthwise.predict.load import load_predictor
        from lengthwise.predict.tokenizer import load_tokenizer

        trained: Any = load_predictor(str(folder))
        metadata = trained.metadata
        tokenizer = load_tokenizer(metadata.tokenizer)
        rows = metadata.training.rows
        few = VICUNA._replace(label=f"Vicuna-7B: {rows:,} rows", rows=rows)
        yield {**self.measure(few, VICUNA, default), "label": few.label}
        print(f"{VICUNA.label}, encoder", file=sys.stderr)
        shape = json.loads((folder / "backbone" / "config.json").read_text())
        name = f"{shape['model_type']}, {shape['num_hidden_layers']} layers"
        asked = self.rows(VICUNA, "test")
        yield {
            "label": f"{few.label}, fine-tuned {name}",
            "kind": metadata.kind,
            "loss": metadata.loss,
            "bucket": metadata.bucket,
            "trained_rows": rows,
            "floor": None,
            "reach": None,
            "microseconds_per_100_tokens": microseconds_per_100_tokens(trained, asked, tokenizer),
            **dataclasses.asdict(evaluate(trained, asked, tokenizer)),
        }

    def clairvoyant(self, source: Source) -> Iterator[dict[str, Any]]:
        """Clairvoyant's features and trees, as published and with the length to learn."""
        from lengthwise.errors import InputError

        asked = self.rows(source, "test")
        for kind, classes in (("Clairvoyant", True), ("its features, length learnt", False)):
            started = time.monotonic()
            try:
                trees = Clairvoyant(self.rows(source, "train"), self._tokenizer, classes=classes)
            except InputError as error:
                print(f"left out: {error}", file=sys.stderr)
                return
            seconds = time.monotonic() - started
            row = other_row(f"{source.label}: {kind}", kind, asked, trees.scores(asked.prompts))
            yield {**row, "trained_rows": trees.rows, "training_seconds": seconds}

    def tie(self, source: Source) -> dict[str, Any]:
        """TIE's law of each prompt's answers, ordered by its rank with the tail at its middle."""
        asked, learnt = self.rows(VICUNA, "test"), self.rows(source, "train")
        started = time.monotonic()
        predictor = LogTPredictor(learnt, self._tokenizer)
        seconds = time.monotonic() - started
        scores = predictor.laws(asked).scores(sum(BETAS) / 2)
        row = other_row("Vicuna-7B: TIE's law, four answers a prompt", "TIE", asked, scores)
        return {**row, "trained_rows": len(learnt.prompts), "training_seconds": seconds}


def other_row(label: str, kind: str, asked: Any, scores: Any) -> dict[str, Any]:
    """The row of what only orders: nothing but its tau is known."""
    from lengthwise.predict.kendall import tau_with_interval

    tau, tau_low, tau_high = tau_with_interval(asked.lengths, scores, groups=asked.rows)
    nothing = dict.fromkeys(
        ("loss", "bucket", "floor", "reach", "ceiling_tau", "coverage_80", "microseconds_p50")
    )
    return {
        "label": label,
        "kind": kind,
        **nothing,
        "microseconds_p99": None,
        "microseconds_per_100_tokens": None,
        "rows": len(asked.prompts),
        "tau": tau,
        "tau_low": tau_low,
        "tau_high": tau_high,
    }


def microseconds_per_100_tokens(predictor: Any, table: Any, tokenizer: Any) -> float:
    """Time of a prediction for each 100 tokens of the prompt, the median over test prompts."""
    from statistics import median

    from lengthwise.predict.extract import requests_of

    found = []
    for prompt in requests_of(table, tokenizer, slice(0, 500)):
        times = []
        for _ in range(5):
            started = time.perf_counter()
            predictor.predict(prompt)
            times.append(time.perf_counter() - started)
        found.append(1e8 * median(times) / len(prompt.token_ids))
    return median(found)


def main() -> int:
    """Measure, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="its folder")
    parser.add_argument("--encoder", type=Path, help="folder of an encoder that has been trained")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    rows = list(measurements(arguments.data, arguments.seed, arguments.encoder))
    if arguments.json:
        print(json.dumps(rows, indent=2, ensure_ascii=False))
        return 0
    for row in rows:
        line = (
            f"{row['label']:52} tau {row['tau']:.3f} ({row['tau_low']:.3f}–{row['tau_high']:.3f})"
        )
        if row["coverage_80"] is not None:
            line += (
                f" {row['coverage_80']:.1%} covered, {row['microseconds_p50']:.0f} µs, "
                f"{row['microseconds_per_100_tokens']:.0f} µs per 100 tokens"
            )
        print(f"{line}, trained in {row['training_seconds']:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
