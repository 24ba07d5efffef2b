"""Ranking by time or by tokens, where prompts are long: recorded traffic on an H100."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from bench.figures.cell import Cell, Traffic
from bench.figures.compared import against_fcfs
from bench.figures.sources import Sources, noisy_predictions, stretched
from bench.figures.table import Table
from lengthwise.simulate.presets import preset

GPU = preset("h100", "llama-3-8b")
ENGINE = replace(GPU.engine, slots=64, lag=1)
TRACES: Final = {"conv": "trace_azure2023_conv.parquet", "code": "trace_azure2023_code.parquet"}
LOADS: Final = ("0.7", "0.9", "1.05")
SPECS: Final = {
    "fcfs": "fcfs",
    "shortest-prefill-first": "shortest-prefill-first",
    **{
        f"{policy}, by {words}": policy + option
        for policy in ("sjf", "srpt", "hrrn")
        for words, option in (("tokens", ""), ("time", ":service_time=true"))
    },
}
REQUESTS, DRAWS = 5000, 3  # the first of each trace; draws of the predictions' noise


def cells(sources: Sources) -> Iterator[Cell]:
    """Length policies by tokens and by time, on both traces."""
    for (name, file), seed in itertools.product(TRACES.items(), range(DRAWS)):
        trace = sources.trace(file, REQUESTS)
        traffic = Traffic(trace, noisy_predictions(trace, 0.5, seed))
        for load in LOADS:
            offered = stretched(traffic, load, GPU.cost, ENGINE)
            for policy, spec in SPECS.items():
                tags = {"workload": name, "load": load, "policy": policy, "seed": seed}
                yield Cell(tags, spec, offered, GPU.cost, ENGINE)


TABLES = (
    Table(
        "service-time",
        cells,
        against_fcfs("workload", "load"),
        files=tuple(TRACES.values()),
    ),
)
