"""The cells of a sweep: every combination of what is varied, and what each gains over fcfs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from lengthwise.advise.cell import Cell, Figures
from lengthwise.compare.specs import parse_policies
from lengthwise.compare.traffic import parse_load
from lengthwise.errors import InputError, unknown_name
from lengthwise.serve.places import MORE
from lengthwise.settings import Settings
from lengthwise.simulate.engine_settings import EngineSettings, replaced

SWEPT = ("c", "max_overtakes", "blend", "tau", "kv_blocks", "slots", "replicas")


def sweep_cells(
    base: Cell,
    policies: Sequence[str],
    loads: Sequence[str],
    sweeps: Sequence[str],
    seeds: range,
    *,
    pausing: bool,
) -> Iterator[Cell]:
    """Every combination, each policy's once where what is varied does not concern it.

    Args:
        base: what all cells have alike; without pausing its engine has no places for it.
        policies: specs.
        loads: as on the command line.
        sweeps: `name=values`.
        seeds: of arrivals and predictions.
        pausing: whoever makes way is paused; where slots are swept, the worker is sized as
            `lengthwise serve` does.

    Raises:
        InputError: something in them is wrong, or a policy asks for what cannot be.
    """
    settings = parse_policies(policies, base.predictor, pausing=pausing)
    for label, chosen in settings.items():
        _refuse_impossible(label, chosen, pausing)
    axes = [_axis(text) for text in sweeps]
    seen: set[str] = set()
    for values in itertools.product(*(values for _, values in axes)):
        varied = dict(zip((name for name, _ in axes), values, strict=True))
        for load in (part for text in loads for part in text.split(",")):
            for seed in seeds:
                for label, chosen in settings.items():
                    cell = _vary(
                        replace(base, label=label, load=parse_load(load), seed=seed),
                        chosen,
                        varied,
                        pausing,
                    )
                    if repr(cell.key()) not in seen:
                        seen.add(repr(cell.key()))
                        yield cell


def _refuse_impossible(label: str, settings: Settings, pausing: bool) -> None:
    """Raise an InputError for a policy that asks for what no cell has."""
    if settings.pausing is True and not pausing:
        raise InputError(f"policy {label!r} asks for pauses: leave --no-pausing out")
    if settings.peek is True:
        raise InputError(
            f"policy {label!r}: it is a probe that looks, and none is simulated here; `lengthwise "
            "tune --probe-tau` has one"
        )


def _vary(cell: Cell, settings: Settings, varied: dict[str, float], pausing: bool) -> Cell:
    """The cell under these settings, with what is varied put in where it applies."""
    tags: dict[str, Any] = {
        name: int(varied[name]) for name in ("kv_blocks", "slots") if name in varied
    }
    engine = EngineSettings(**replaced(asdict(cell.engine), tags))
    cell = replace(cell, engine=engine.with_places(MORE) if pausing else engine)
    if "replicas" in varied:
        tags["replicas"] = int(varied["replicas"])
        cell = replace(cell, replicas=tags["replicas"])
    arguments = settings.discipline_arguments(cell.engine.slots)
    predictor = settings.predictor if settings.predictor != cell.predictor else cell.predictor
    plain = settings.policy == "fcfs"
    if "tau" in varied and not plain and predictor not in ("oracle", "given"):
        tags["tau"] = varied["tau"]
        predictor = f"noisy-oracle:{varied['tau']:g}"
    if "c" in varied and settings.policy == "trail":
        tags["c"] = varied["c"]
        arguments["parameters"] = {**arguments["parameters"], "c": varied["c"]}
    if "blend" in varied and not plain:
        tags["blend"] = arguments["blend"] = varied["blend"]
    if "max_overtakes" in varied and not plain:
        tags["max_overtakes"] = arguments["max_overtakes"] = int(varied["max_overtakes"])
    return replace(cell, discipline=arguments, predictor=predictor, tags=tags)


def _axis(text: str) -> tuple[str, list[float]]:

    name, separator, values = text.partition("=")
    if name not in SWEPT:
        raise unknown_name("sweep", name, SWEPT)
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if not separator or not numbers:
        raise InputError(f"--sweep {text}: give numbers, as in {name}=1,2,4")
    return name, numbers


_TOLD_APART = ("load", "seed", "replicas", "kv_blocks", "slots")


def with_ratios(rows: Sequence[Figures]) -> list[Figures]:
    """Beside each cell's figures, how many times lower its mean and p99 are than those of fcfs."""
    baselines = {
        tuple(row.get(name) for name in _TOLD_APART): row
        for row in rows
        if row["policy"].partition(":")[0] == "fcfs" and "error" not in row
    }
    compared: list[Figures] = []
    for row in rows:
        baseline = baselines.get(tuple(row.get(name) for name in _TOLD_APART))
        ratios = {}
        for name in ("mean_e2el_ms", "p99_e2el_ms", "mean_ttft_ms"):
            if baseline is not None and row.get(name):
                ratios[f"fcfs_over_policy_{name.removesuffix('_ms')}"] = baseline[name] / row[name]
        compared.append({**row, **ratios})
    return compared
