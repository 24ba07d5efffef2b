"""Policies side by side on real prompts: an A100 serves Llama-3-8B."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from bench.figures.cell import Cell
from bench.figures.compared import Row, against_fcfs
from bench.figures.sources import VICUNA, Sources, arriving
from bench.figures.table import Table
from lengthwise.simulate.presets import preset

GPU = preset("a100", "llama-3-8b")
ENGINE = replace(GPU.engine, lag=1)  # scheduled asynchronously, as on a GPU
SLOTS = replace(ENGINE, slots=64)

POLICIES = ("fcfs", "hrrn", "ltr", "srpt", "oracle")
LOADS = ("0.9", "1.05", "1.2", "burst")
#: With 256 slots a full batch is not the fastest one: a step of 257 tokens takes 30 % longer.
MANY_LOADS = ("1.2", "1.5", "2", "burst")
DRAWS = 5
REQUESTS, MANY = 800, 1900  # the most that the test rows have

GUARDED = ("fcfs", "ltr", "ltr:max_overtakes=auto", "srpt", "srpt:max_overtakes=auto")
NO_GUARD = "none"
GUARDS = {
    NO_GUARD: "srpt",
    "promotion, N = 200, M = 10": "srpt:starvation_threshold=200;starvation_quantum=10",
    "promotion, N = 1000, M = 10": "srpt:starvation_threshold=1000;starvation_quantum=10",
    "promotion, N = 4000, M = 10": "srpt:starvation_threshold=4000;starvation_quantum=10",
    "overtaking, K = 1 x slots": "srpt:max_overtakes=64",
    "overtaking, K = 1 x slots + w / 4": "srpt:max_overtakes=64;overtake_share=0.25",
    "overtaking, K = 1 x slots + w / 2": "srpt:max_overtakes=64;overtake_share=0.5",
    "overtaking, K = 1 x slots + w": "srpt:max_overtakes=64;overtake_share=1",
    "overtaking, K = 5 x slots": "srpt:max_overtakes=320",
    "overtaking, K = 20 x slots": "srpt:max_overtakes=1280",
    "waiting, 10 s": "srpt:max_wait_s=10",
    "waiting, 60 s": "srpt:max_wait_s=60",
    "blend, 0.9": "srpt:blend=0.9",
}
_PROVED = {"overtaking, K = 1 x slots": 64, "overtaking, K = 5 x slots": 320}
_PROVED["overtaking, K = 20 x slots"] = 1280


def compared(
    slots: int, requests: int, loads: Sequence[str], policies: Sequence[str], sources: Sources
) -> list[Cell]:
    """Policies on draws of test prompts, predictions by the default predictor."""
    engine = replace(ENGINE, slots=slots)
    return [
        Cell(
            tags={"policy": spec, "load": load, "seed": seed},
            spec=spec,
            traffic=arriving(sources.drawn(VICUNA, requests, seed), load, GPU.cost, engine, seed),
            cost=GPU.cost,
            engine=engine,
        )
        for seed, load, spec in itertools.product(range(DRAWS), loads, policies)
    ]


def guards(sources: Sources) -> list[Cell]:
    """srpt with every guard, and fcfs."""
    return [
        Cell(
            tags={"policy": name, "load": load, "seed": seed},
            spec=spec,
            traffic=arriving(sources.lengths(2000, seed), load, GPU.cost, SLOTS, seed),
            cost=GPU.cost,
            engine=SLOTS,
        )
        for seed, load in itertools.product(range(3), LOADS[1:])
        for name, spec in {"fcfs": "fcfs", **GUARDS}.items()
    ]


def guard_rows(cells: Sequence[Row]) -> list[Row]:
    """With the bound on overtaking where it is proved."""
    rows = against_fcfs("load")(cells)
    for row in rows:
        k = _PROVED.get(row["policy"])
        row["bound"] = None if k is None else k + SLOTS.slots - 1
    return rows


def _policies(
    name: str, slots: int, requests: int, loads: Sequence[str], policies: Sequence[str]
) -> Table:
    return Table(
        name,
        partial(compared, slots, requests, loads, policies),
        against_fcfs("load"),
        files=(VICUNA,),
        trained=True,
        facts={"requests": requests, "draws": DRAWS, "served_by": GPU.name, "slots": slots},
    )


TABLES = (
    _policies("comparison", 64, REQUESTS, LOADS, POLICIES),
    _policies("comparison-256", 256, MANY, MANY_LOADS, POLICIES),
    _policies("guards", 64, REQUESTS, LOADS[1:], GUARDED),
    Table("starvation", guards, guard_rows, files=(VICUNA,)),
)
