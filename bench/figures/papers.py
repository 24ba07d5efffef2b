"""The settings of the two papers, their figures beside ours.

LTR: Fu et al. 2024, arXiv 2408.15792, figures read off its plots and those of the authors' blog.
TRAIL: Shahout et al. 2024, arXiv 2410.01035, from its abstract.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from bench.figures.cell import Cell, Figures, Traffic, rounded, simulated
from bench.figures.compared import Row, against_fcfs
from bench.figures.policies import ENGINE, GPU
from bench.figures.sources import (
    CASTILLO,
    VICUNA,
    Sources,
    arriving,
    of_lengths,
    significant,
    tokenizer,
)
from bench.figures.table import Table
from lengthwise.advise.sweep import summary
from lengthwise.predict.prediction import Prompt
from lengthwise.simulate.presets import Preset, preset

_SMALLER_GIB: Final = 40.0  # an A100 of 40 GB has so much less memory than the preset's of 80 GB
_MEMORY_SHARE: Final = 0.9


def forty_gigabytes(found: Preset, count: int) -> Preset:
    """A preset on A100s of 40 GB: LTR's, with its slots and token budget and no prefix cache.

    A draw repeats prompts, which a prefix cache would make cheaper than they were in the paper.
    """
    block = found.model.kv_bytes(count) * found.engine.block_size
    fewer = int(_MEMORY_SHARE * _SMALLER_GIB * 2**30 / block)
    assert found.engine.kv_blocks is not None
    engine = replace(
        found.engine,
        slots=256,
        token_budget=768,
        kv_blocks=found.engine.kv_blocks - fewer,
        prefix_caching=False,
        lag=1,
    )
    return replace(found, engine=engine)


@dataclass(frozen=True)
class Served:
    """A model of LTR's evaluation, and whose answers stand for its.

    Attributes:
        preset: model and GPUs.
        answers: whose lengths, in the table of prompts.
    """

    preset: Preset
    answers: str


MODELS: Final = {
    "Llama-3-8B": Served(
        forty_gigabytes(preset("a100", "llama-3-8b"), 1), "meta-llama/Llama-3.1-8B-Instruct"
    ),
    "Llama-3-70B": Served(
        forty_gigabytes(preset("8xa100", "llama-3-70b"), 8), "meta-llama/Llama-3.3-70B-Instruct"
    ),
}
RATES: Final = (2, 4, 8, 16, 32, 64)  # requests/s, for a minute each
LTR_POLICIES: Final = ("fcfs", "mlfq", "ltr", "srpt", "oracle")
_MINUTE, _BURST, _SYNTHETIC = 60, 2000, 10_000
_LONGEST_PROMPT, _CONTEXT = 1024, 8192
_WANTED, _FIVE_MINUTES = 1000, 300.0

#: By model and policy: with ShareGPT's and with LMSYS's prompts; None where there is none.
Published = dict[tuple[str, str], tuple[float | None, float | None]]

#: s a token at 64 requests/s (figure 3).
LTR_RATES: Final[Published] = {
    ("Llama-3-8B", "fcfs"): (3.9, 5.6),
    ("Llama-3-8B", "mlfq"): (2.65, 1.3),
    ("Llama-3-8B", "ltr"): (1.58, 0.8),
    ("Llama-3-70B", "fcfs"): (4.1, 6.6),
    ("Llama-3-70B", "mlfq"): (3.9, 2.4),
    ("Llama-3-70B", "ltr"): (1.65, 1.1),
}
#: s a token in a burst of 2,000 (table 3; figure 2 for the 8B model).
LTR_BURST: Final[Published] = {
    ("Llama-3-8B", "ltr"): (0.69, None),
    ("Llama-3-8B", "oracle"): (0.385, None),
    ("Llama-3-70B", "ltr"): (0.78, 0.54),
    ("Llama-3-70B", "oracle"): (0.46, 0.34),
}
#: s until 1,000 of 10,000 have been answered (table 3).
LTR_SYNTHETIC: Final[Published] = {
    ("Llama-3-70B", "ltr"): (231.59, 59.67),
    ("Llama-3-70B", "oracle"): (102.04, 34.60),
}


@cache
def answers(sources: Sources, model: str) -> tuple[NDArray[np.int64], Any, NDArray[np.float64]]:
    """Prompt tokens, lengths of several answers and predictions of a model's test prompts."""
    table = sources.prompts(CASTILLO, "test", model)
    assert table.samples is not None
    assert table.prompt_tokens is not None
    fits = [
        row
        for row, lengths in enumerate(table.samples)
        if table.prompt_tokens[row] <= _LONGEST_PROMPT and min(lengths) >= 1
    ]
    predictor = sources.predictor(CASTILLO, model)
    encoded = tokenizer().encode_chat_many([table.prompts[row] for row in fits])
    predicted = np.array([predictor.predict(Prompt(ids, {})) for ids in encoded])
    longest = _CONTEXT - _LONGEST_PROMPT
    lengths = [np.minimum(table.samples[row], longest) for row in fits]
    return table.prompt_tokens[fits], lengths, significant(predicted)


@cache
def drawn(sources: Sources, model: str, count: int, seed: int) -> Traffic:
    """Prompts drawn with replacement, each with one of its answers' lengths."""
    prompts, lengths, predicted = answers(sources, model)
    generator = np.random.default_rng(seed)
    rows = generator.integers(len(prompts), size=count)
    output = np.array([generator.choice(lengths[row]) for row in rows])
    return Traffic(of_lengths(prompts[rows], output), predicted[rows])


def _ltr_cell(sources: Sources, model: str, load: str, count: int, seed: int, spec: str) -> Cell:
    served = MODELS[model]
    cost, engine = served.preset.cost, served.preset.engine
    traffic = drawn(sources, served.answers, count, seed)
    return Cell(
        tags={"workload": model, "load": load, "policy": spec, "seed": seed},
        spec=spec,
        traffic=arriving(traffic, load, cost, engine, seed),
        cost=cost,
        engine=engine,
    )


def ltr_rates(sources: Sources) -> Iterator[Cell]:
    """2 to 64 requests/s for a minute, and a burst of 2,000."""
    loads = {**{f"rate={rate}": rate * _MINUTE for rate in RATES}, "burst": _BURST}
    for model, (load, count), spec in itertools.product(MODELS, loads.items(), LTR_POLICIES):
        yield _ltr_cell(sources, model, load, count, 0, spec)


def ltr_rows(cells: Sequence[Row]) -> list[Row]:
    """With the paper's figures where it gives them."""
    rows = against_fcfs("workload", "load")(cells)
    published: dict[str, Published] = {"burst": LTR_BURST, "rate=64": LTR_RATES}
    for row in rows:
        paper = published.get(row["load"], {}).get((row["workload"], row["policy"]))
        row["paper_sharegpt_s"], row["paper_lmsys_s"] = paper or (None, None)
    return rows


def ltr_synthetic(sources: Sources) -> Iterator[Cell]:
    """10,000 prompts at once, of which 1,000 answers are wanted."""
    for model, spec in itertools.product(MODELS, LTR_POLICIES):
        yield _ltr_cell(sources, model, "burst", _SYNTHETIC, 0, spec)


def when_enough(cell: Cell) -> Figures:
    """When 1,000 answers were there, and how many after five minutes."""
    served = simulated(cell)
    ends = np.sort(served.requests["finish_s"])
    return rounded(
        {
            **summary(served),
            "first_1000_s": float(ends[_WANTED - 1]),
            "in_300_s": int(np.searchsorted(ends, _FIVE_MINUTES, "right")),
        }
    )


def synthetic_rows(cells: Sequence[Row]) -> list[Row]:
    """Both figures, against those of fcfs and beside the paper's."""
    base = {cell["workload"]: cell for cell in cells if cell["policy"] == "fcfs"}
    rows = []
    for cell in cells:
        other = base[cell["workload"]]
        paper = LTR_SYNTHETIC.get((cell["workload"], cell["policy"]), (None, None))
        rows.append(
            {
                "workload": cell["workload"],
                "policy": cell["policy"],
                "first_1000_s": round(cell["first_1000_s"], 3),
                "factor_first_1000": round(other["first_1000_s"] / cell["first_1000_s"], 5),
                "in_300_s": cell["in_300_s"],
                "factor_in_300": round(cell["in_300_s"] / max(other["in_300_s"], 1), 5),
                "paper_sharegpt_s": paper[0],
                "paper_lmsys_s": paper[1],
            }
        )
    return rows


TRAIL_RATES: Final = (10, 14, 20, 30, 40)  # requests/s, Poisson
TRAIL_POLICIES: Final = ("fcfs", "sjf-bert", "trail-bert", "trail+")
_TRAIL_REQUESTS, _TRAIL_SLOTS, _TRAIL_DRAWS = 1000, 48, 3


def trail(sources: Sources) -> Iterator[Cell]:
    """1,000 Alpaca prompts at rates up to overload, 48 at once, as in the authors' code."""
    engine = replace(ENGINE, slots=_TRAIL_SLOTS)
    for seed, rate, spec in itertools.product(range(_TRAIL_DRAWS), TRAIL_RATES, TRAIL_POLICIES):
        load = f"rate={rate}"
        traffic = sources.drawn(VICUNA, _TRAIL_REQUESTS, seed)
        yield Cell(
            tags={"load": load, "policy": spec, "seed": seed},
            spec=spec,
            traffic=arriving(traffic, load, GPU.cost, engine, seed),
            cost=GPU.cost,
            engine=engine,
        )


TABLES = (
    Table("ltr-rates", ltr_rates, ltr_rows, files=(CASTILLO,), trained=True),
    Table(
        "ltr-synthetic",
        ltr_synthetic,
        synthetic_rows,
        files=(CASTILLO,),
        measure=when_enough,
        trained=True,
    ),
    Table("trail-rates", trail, against_fcfs("load"), files=(VICUNA,), trained=True),
)
