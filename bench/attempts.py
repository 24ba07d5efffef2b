"""Attempts at a better tau than the default predictor's, each measured on validation rows alone.

    python bench/attempts.py --data ../shared/data --encoder FOLDER --json

All but those that say so learn from the same 10,000 train rows of Vicuna-7B's answers, from one
answer to each prompt, and serve at the default's cost. A gain is over the default, with the 95 %
interval of a paired bootstrap over the validation rows. `--encoder` is the folder of a pretrained
sentence encoder, whose attempts are left out without it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, hstack

from lengthwise.intervals import draws, middle_95
from lengthwise.predict import descent
from lengthwise.predict import lexical as word_model
from lengthwise.predict.descent import (
    Linear,
    Schedule,
    SparseRows,
    descend,
    fit_ridge,
    normal_scores,
)
from lengthwise.predict.extract import extract_features, token_text_of
from lengthwise.predict.features import GROUP_BITS, GROUPS, FeatureRows
from lengthwise.predict.kendall import kendall_tau
from lengthwise.predict.lexical import count_features, matrix_of
from lengthwise.predict.losses import loss_named
from lengthwise.predict.tokenizer import load_tokenizer
from lengthwise.workload.dataset import Dataset, load_dataset

FILE: Final = "prompts_alpaca_vicuna7b.parquet"
ANSWERS: Final = "response_tokens,tokens_t00,tokens_t03,tokens_t05"
ROWS: Final = 10_000
_START: Final = 2.0  # as lexical_train scales the ridge fit
_SCHEDULE: Final = Schedule(epochs=5, rate=3e-4, most_steps=1_000)
_DRAWS: Final = 400  # of the bootstrap
_SCALES: Final = (0.7, 1.0, 0.5, 0.8, 0.8, 1.0, 0.7)  # the best of 15 tried on validation rows
#: what asks for an answer of some form
_CUES: Final = (
    r"\blists?\b|\benumerate\b",
    r"\b(?:one|single) word\b",
    r"\byes or no\b|\btrue or false\b",
    r"\bsentences?\b",
    r"\bparagraphs?\b",
    r"\b(?:essay|story|poem|letter|email|article|speech|blog)\b",
    r"\b(?:table|code|function|program|script|query)\b",
    r"\b(?:briefly|short|concise|brief)\b",
    r"\b(?:explain|describe|discuss|compare)\b",
    r"\bstep[ -]by[ -]step\b|\bsteps\b",
    r"\b(?:classify|identify|which|categorize)\b",
    r"\b(?:rewrite|edit|correct|translate|convert|paraphrase)\b",
    r"\b(?:calculate|solve|how many|how much|what is the)\b",
)

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class Design(NamedTuple):
    """What is learnt from, and what is asked: one row a prompt."""

    train: Any  # scipy sparse, shape (rows, columns)
    valid: Any


class Attempts:
    """The rows, and the default's scores for the validation rows."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self.train = load_dataset(self.path, split="train")
        self.valid = load_dataset(self.path, split="valid")
        tokenizer = load_tokenizer("reference")
        text = token_text_of(tokenizer)
        parts = [
            extract_features(each, tokenizer, text.vocabulary, text.template, lambda part: None)
            for each in (self.train, self.valid)
        ]
        self._features = FeatureRows(
            np.concatenate([parts[0].starts, parts[0].starts[-1] + parts[1].starts[1:]]),
            np.concatenate([each.buckets for each in parts]),
        )
        self.rows = np.arange(ROWS)
        self.every = np.arange(len(self.train.prompts))
        self._asked = self.every.size + np.arange(len(self.valid.prompts))
        self.lengths = self.train.lengths.astype(np.float64)
        several = load_dataset(self.path, split="train", length_column=ANSWERS)
        assert several.samples is not None
        logs = np.log(np.maximum(1, np.array(several.samples)))
        self.means, self.medians = np.exp(logs.mean(axis=1)), np.exp(np.median(logs, axis=1))
        self.default = self.scores(self.design(self.rows), self.lengths[self.rows])

    def design(
        self,
        rows: Integers,
        scales: Sequence[float] | None = None,
        halved: bool = False,
        least: int = word_model.LEAST_PROMPTS,
    ) -> Design:
        """The default's features; groups scaled, or with half as many buckets for each, or pruned
        of those that fewer prompts have than `least`."""
        features = self._features
        if halved:
            features = features._replace(buckets=features.buckets & ~1)
        before, word_model.LEAST_PROMPTS = word_model.LEAST_PROMPTS, least  # type: ignore[misc]
        try:
            buckets, idf = count_features(features, rows, np.ones(GROUPS, bool))
        finally:
            word_model.LEAST_PROMPTS = before  # type: ignore[misc]
        found = [matrix_of(features, each, buckets, idf) for each in (rows, self._asked)]
        if scales is not None:
            scale = np.array(scales, np.float32)[buckets >> GROUP_BITS]
            found = [each._replace(values=each.values * scale[each.columns]) for each in found]
        return Design(*(_matrix(each, buckets.size) for each in found))

    def with_names(self, named: Callable[[str], list[str]]) -> Design:
        """The default's features and others by name, of those that two train prompts have."""
        texts = [*self.train.prompts[:ROWS], *self.valid.prompts]
        names = [sorted(set(named(text))) for text in texts]
        counts: dict[str, int] = {}
        for each in names[:ROWS]:
            for name in each:
                counts[name] = counts.get(name, 0) + 1
        columns = {name: place for place, name in enumerate(n for n in counts if counts[n] > 1)}
        rows, places, values = [], [], []
        for row, each in enumerate(names):
            kept = [name for name in each if name in columns]
            weights = [np.log(ROWS / counts[name]) + 1 for name in kept]
            norm = np.sqrt(np.square(weights).sum()) or 1.0
            rows += [row] * len(kept)
            places += [columns[name] for name in kept]
            values += [weight / norm for weight in weights]
        more = csr_array((values, (rows, places)), (len(texts), max(len(columns), 1)))
        plain = self.design(self.rows)
        return Design(
            csr_array(hstack([plain.train, more[:ROWS]])),
            csr_array(hstack([plain.valid, more[ROWS:]])),
        )

    def scores(
        self, design: Design, lengths: Floats, loss: str = "listmle", seed: int = 0
    ) -> Floats:
        """Train as the default is trained; the validation rows' scores."""
        rows = _rows(design.train)
        weights = _START * fit_ridge(rows, design.train.shape[1], normal_scores(lengths))
        model = Linear(rows, weights[:, np.newaxis], np.zeros(1))
        lowered = loss_named(loss)
        descend(model, lowered, lambda epoch: lowered.targets(lengths, 1), _SCHEDULE, seed)
        return np.asarray(design.valid @ model.weights[:, 0])

    def of_targets(self, design: Design, targets: Floats, penalty: float = 3.0) -> Floats:
        """A ridge fit to some targets; the validation rows' scores."""
        before, descent.PENALTY = descent.PENALTY, penalty  # type: ignore[misc]
        try:
            weights = fit_ridge(_rows(design.train), design.train.shape[1], targets)
        finally:
            descent.PENALTY = before  # type: ignore[misc]
        return np.asarray(design.valid @ weights)

    def by_distance(self, power: float) -> Floats:
        """Pairs weighted by how far apart their lengths are, as a power of their normal scores."""
        design, wanted = self.design(self.rows), normal_scores(self.lengths[self.rows])
        rows = _rows(design.train)
        weights = _START * fit_ridge(rows, design.train.shape[1], wanted)
        model = Linear(rows, weights[:, np.newaxis], np.zeros(1))
        random = np.random.default_rng(0)
        size = max(32, ROWS * _SCHEDULE.epochs // 1_000)
        steps = _SCHEDULE.epochs * (ROWS // size)
        for step in range(steps):
            batch = random.choice(ROWS, size, replace=False)
            said, true = model.outputs(batch)[:, 0], wanted[batch]
            apart = true[:, np.newaxis] - true
            weight = np.abs(apart) ** power
            sign = np.sign(apart)
            slope = -weight * sign / (1 + np.exp(sign * (said[:, np.newaxis] - said)))
            gradient = slope.sum(axis=1) * size / weight.sum() / 2
            model.step(gradient[:, np.newaxis], _SCHEDULE.rate * (1 - step / steps))
        return np.asarray(design.valid @ model.weights[:, 0])


def crosses(text: str) -> list[str]:
    """The opening with the shape: first words with length, lines and last character."""
    words = re.findall(r"\w+", text.lower())
    length, lines = int(2 * np.log2(1 + len(words))), min(text.count("\n"), 5)
    first, both = " ".join(words[:1]), " ".join(words[:2])
    last = text.rstrip()[-1:]
    return [f"1 {first} {length}", f"2 {both} {length}", f"3 {both} {lines}", f"4 {first} {last}"]


def cues(text: str) -> list[str]:
    """What form of answer is asked for, alone and with the first number and the length."""
    lower = text.lower()
    found = [place for place, cue in enumerate(_CUES) if re.search(cue, lower)]
    number = re.search(r"\b(\d+|two|three|four|five|six|ten)\b", lower)
    length = int(np.log2(1 + len(lower.split())))
    said = [f"{place}" for place in found] + [f"{place} of {length}" for place in found]
    if number is not None:
        said += [f"{place} by {number.group()}" for place in found]
    return said + [f"{a} and {b}" for a in found for b in found if a < b]


def encoded(folder: Path, tables: Sequence[Dataset], keep: Path | None) -> list[Floats]:
    """The mean of a frozen encoder's last states for each prompt, of length 1."""
    kept = None if keep is None else keep / "encoded.npz"
    if kept is not None and kept.is_file():
        with np.load(kept) as found:
            return [found[name].astype(np.float64) for name in found.files]
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    found = []
    for table in tables:
        states = np.zeros((len(table.prompts), model.config.hidden_size), np.float32)
        order = np.argsort([len(text) for text in table.prompts])
        for start in range(0, order.size, 32):
            rows = order[start : start + 32]
            texts = [table.prompts[row] for row in rows]
            batch = tokenizer(
                texts, padding=True, truncation=True, max_length=64, return_tensors="pt"
            )
            with torch.inference_mode():
                last = model(**batch).last_hidden_state
            mask = batch["attention_mask"][..., None].float()
            mean = (last * mask).sum(1) / mask.sum(1)
            states[rows] = torch.nn.functional.normalize(mean).numpy()
        found.append(states)
    if kept is not None:
        np.savez(kept, *found)
    return [each.astype(np.float64) for each in found]


def of_states(learnt: Floats, targets: Floats, asked: Floats, penalty: float = 3.0) -> Floats:
    """A ridge fit on an encoder's states."""
    inner = learnt.T @ learnt + penalty * np.eye(learnt.shape[1])
    return np.asarray(asked @ np.linalg.solve(inner, learnt.T @ (targets - targets.mean())))


def with_encoder(all_of: Attempts, folder: Path, keep: Path | None) -> Iterator[tuple[str, Floats]]:
    """A frozen sentence encoder beside the words, and distilled into their weights."""
    states, asked = encoded(folder, [all_of.train.first(ROWS), all_of.valid], keep)
    wanted = normal_scores(all_of.lengths[all_of.rows])
    design = all_of.design(all_of.rows)
    alone = of_states(states, wanted, asked)
    yield "frozen sentence encoder alone (milliseconds)", alone
    yield "words and encoder, 0.7 to 0.3 (milliseconds)", 0.7 * _z(all_of.default) + 0.3 * _z(alone)
    folds = np.random.default_rng(0).integers(5, size=ROWS)
    taught = np.zeros(ROWS)
    for fold in range(5):
        own, out = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
        part = normal_scores(all_of.lengths[own])
        words = all_of.of_targets(Design(design.train[own], design.train[out]), part)
        taught[out] = 0.7 * _z(words) + 0.3 * _z(of_states(states[own], part, states[out]))
    taught *= (wanted @ taught) / (taught @ taught)
    for share in (0.3, 0.5):
        name = f"both distilled into the words' weights, out of fold, share {share}"
        yield name, all_of.of_targets(design, (1 - share) * wanted + share * taught)


def attempts(
    all_of: Attempts, encoder: Path | None, keep: Path | None
) -> Iterator[tuple[str, Floats]]:
    """Each attempt's name and its scores for the validation rows."""
    rows, every, lengths = all_of.rows, all_of.every, all_of.lengths
    plain = all_of.design(rows)
    own = lengths[rows]
    yield (
        "four answers a prompt: learn their geometric mean",
        all_of.scores(plain, all_of.means[rows]),
    )
    yield "four answers a prompt: learn their median", all_of.scores(plain, all_of.medians[rows])
    yield f"all {every.size:,} train rows", all_of.scores(all_of.design(every), lengths)
    yield "all train rows, mean of four answers", all_of.scores(all_of.design(every), all_of.means)
    for power in (0.5, 1.0, 2.0):
        yield f"pairs weighted by distance to the power {power}", all_of.by_distance(power)
    yield "crosses of opening and shape", all_of.scores(all_of.with_names(crosses), own)
    yield "cues of the answer's form", all_of.scores(all_of.with_names(cues), own)
    yield "half the hash space", all_of.scores(all_of.design(rows, halved=True), own)
    yield "groups of features scaled", all_of.scores(all_of.design(rows, _SCALES), own)
    for least in (1, 3, 5):
        name = f"only features that {least} prompts have, instead of {word_model.LEAST_PROMPTS}"
        yield name, all_of.scores(all_of.design(rows, least=least), own)
    several = [all_of.scores(plain, own, seed=seed) for seed in range(4)]
    yield "four orders of the lists, averaged", np.mean(several, axis=0)
    for penalty in (2.0, 5.0):
        name = f"ridge alone, penalty {penalty:g} instead of 3"
        yield name, all_of.of_targets(plain, normal_scores(own), penalty)
    if encoder is not None:
        yield from with_encoder(all_of, encoder, keep)


def measured(all_of: Attempts, name: str, scores: Floats) -> dict[str, Any]:
    """Tau on the validation rows, and what it gains over the default's."""
    truth = all_of.valid.lengths
    gains = []
    for drawn in draws(truth.size, _DRAWS, 0):
        pair = [kendall_tau(truth[drawn], each[drawn]) for each in (scores, all_of.default)]
        gains.append((pair[0] or 0.0) - (pair[1] or 0.0))
    low, high = middle_95(gains)
    tau, default = (kendall_tau(truth, each) or 0.0 for each in (scores, all_of.default))
    return {
        "attempt": name,
        "tau": round(tau, 5),
        "gain": round(tau - default, 5),
        "gain_low": round(low, 5),
        "gain_high": round(high, 5),
    }


def _z(scores: Floats) -> Floats:
    return np.asarray((scores - scores.mean()) / scores.std())


def _matrix(rows: SparseRows, columns: int) -> Any:
    values = rows.values.astype(np.float64)
    return csr_array((values, rows.columns, rows.starts), (rows.starts.size - 1, columns))


def _rows(matrix: Any) -> SparseRows:
    return SparseRows(
        matrix.indptr.astype(np.int64),
        matrix.indices.astype(np.int32),
        matrix.data.astype(np.float32),
    )


def main() -> int:
    """Measure, then print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="its folder")
    parser.add_argument("--encoder", type=Path, help="folder of a pretrained sentence encoder")
    parser.add_argument("--keep", type=Path, help="folder where the encoder's states are kept")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    all_of = Attempts(arguments.data)
    found = [measured(all_of, "the default", all_of.default)]
    for name, scores in attempts(all_of, arguments.encoder, arguments.keep):
        found.append(measured(all_of, name, scores))
        print(f"{name}: {found[-1]['tau']:.4f} ({found[-1]['gain']:+.4f})", file=sys.stderr)
    if arguments.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        for row in found:
            print(f"{row['attempt']:60} {row['tau']:.4f} {row['gain']:+.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
