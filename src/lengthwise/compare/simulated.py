"""What verbs that simulate have in common: the engine and its costs, the workload, a sweep's cells.

The workload is a trace, or a table of prompts whose lengths are predicted or given.

A sweep's cells are every combination of what is varied, and what each gains over fcfs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lengthwise.advise.doctor import cost_of_steps, recorded_limits
from lengthwise.advise.sweep import Cell, Figures, Workload
from lengthwise.compare.engine_log import EngineLog
from lengthwise.compare.progress import Progress
from lengthwise.compare.specs import parse_policies
from lengthwise.errors import InputError, unknown_name
from lengthwise.measure.comparison import LOAD_TOLERANCE
from lengthwise.predict.extract import encode_prompts, prompt_counter
from lengthwise.predict.load import load_predictor
from lengthwise.predict.prediction import PredictionError, Prompt
from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer
from lengthwise.serve.places import MORE
from lengthwise.settings import Settings, parse_settings
from lengthwise.simulate.engine import (
    EngineSettings,
    StepCost,
    read_cost,
    read_engine,
    replaced,
    require_whole,
)
from lengthwise.simulate.presets import preset
from lengthwise.workload.dataset import load_dataset, parse_where
from lengthwise.workload.open_trace import is_trace
from lengthwise.workload.trace import Trace, load_trace

SWEPT = ("c", "max_overtakes", "blend", "tau", "kv_blocks", "slots", "replicas")
_WHOLE = ("max_overtakes", "kv_blocks", "slots", "replicas")
_TOLD_APART = ("load", "seed", "replicas", "kv_blocks", "slots")  # each has an fcfs of its own


class Machine(NamedTuple):
    """An engine and what its steps cost."""

    engine: EngineSettings
    cost: StepCost


def choose_machine(
    *, cost: Path | None, model: str | None, gpu: str | None, given: Mapping[str, Any]
) -> Machine:
    """The engine to simulate.

    Args:
        cost: a file of `lengthwise calibrate`; its engine's limits are the defaults.
        model: with `gpu`, a preset instead.
        gpu: see `model`.
        given: limits by the names of `EngineSettings`; None for the default.

    Raises:
        InputError: neither or both ways were given, or something in them is wrong.
    """
    limits = {name: value for name, value in given.items() if value is not None}
    if cost is not None:
        if model or gpu:
            raise InputError("give either --cost FILE or --model and --gpu, not both")
        return Machine(read_engine(cost, limits), read_cost(cost))
    if not (model and gpu):
        raise InputError(
            "what is simulated? give --cost FILE (`lengthwise calibrate` makes one from a bench "
            "run), or --model llama-3-8b --gpu h100 for a preset"
        )
    chosen = preset(gpu, model)
    engine = chosen.limits(limits.pop("block_size", chosen.engine.block_size))
    return Machine(replace(engine, **limits), chosen.cost)


def or_default_machine(
    cost: Path | None, model: str | None, gpu: str | None
) -> tuple[str | None, str | None, str]:
    """A model and a GPU where nothing was said.

    Returns:
        The model, the GPU, and a line that says what was taken for granted, or "".
    """
    if cost is not None or model or gpu:
        return model, gpu, ""
    model, gpu = "llama-3-8b", "h100"
    line = (
        f"no --cost and no --model: taking the preset {gpu}:{model}; `lengthwise calibrate` "
        "measures yours"
    )
    return model, gpu, line


def machine_of_log(
    record: EngineLog,
    costs: Mapping[str, Any],
    given: Mapping[str, Any],
    progress: Progress,
) -> Machine:
    """The engine that a log was recorded on, with costs as given or fitted to its own steps.

    Args:
        record: the log's steps.
        costs: cost, model and gpu, as the user gave them; all None: fitted, and where that cannot
            be, the default machine's.
        given: limits of the engine that replace those recorded; None for no other.
        progress: told where the costs come from, if not from the log.

    Raises:
        InputError: something in them is wrong.
    """
    limits = replaced(
        recorded_limits(record.steps, record.limits),
        {name: value for name, value in given.items() if value is not None},
    )
    try:
        engine = EngineSettings(**limits)
    except TypeError as error:
        raise InputError(
            f"the log has limits that this Lengthwise does not know: {error}; pip install "
            "--upgrade lengthwise"
        ) from None
    if not any(costs.values()):
        try:
            return Machine(engine, cost_of_steps(record.steps, engine))
        except InputError as error:
            progress.note(f"no step costs from the log: {error}")
    model, gpu, assumed = or_default_machine(costs["cost"], costs["model"], costs["gpu"])
    if assumed:
        progress.note(assumed)
    return choose_machine(cost=costs["cost"], model=model, gpu=gpu, given=limits)


def parse_load(text: str) -> str:
    """How requests arrive, as `Cell.load` has it.

    Raises:
        InputError: neither a share above 0 nor `burst`, `trace` or rate=R.
    """
    text = text.strip()
    if text in ("burst", "trace"):
        return text
    try:
        number = float(text.removeprefix("rate="))
    except ValueError:
        number = math.nan
    if not 0.0 < number < math.inf:
        raise InputError(
            f"load {text!r} must be a number above 0, `burst`, `trace` or rate=R, such as 0.9"
        )
    return text


def read_workload(
    path: Path,
    *,
    requests: int | None,
    split: str | None,
    where: Sequence[str] | None,
    predictor: str | None,
    skip_malformed: bool,
    progress: Progress,
    reading: Mapping[str, Any] | None = None,
) -> tuple[Workload, str | None]:
    """A trace, or a table of prompts whose requests arrive all at once until a load is given.

    Args:
        path: of the trace or the table.
        requests: how many at most, the first ones.
        split: of a table: only rows of this split.
        where: only rows with COLUMN=VALUE.
        predictor: as cells name it, or the folder of one.
        skip_malformed: leave malformed rows out and say how many, instead of refusing them.
        progress: told what is read and left out.
        reading: of a trace: further arguments of `load_trace`.

    Returns:
        The workload, and the predictor as cells name it: "given" where it has read the prompts.
    """
    progress.stage(f"reading {path.name}")
    if path.is_file() and not is_trace(path):
        return _from_prompts(path, requests, split, where, predictor, skip_malformed, progress)
    if split:
        raise InputError(f"{path} is a trace without prompts: --split does not apply")
    conditions = parse_where(list(where) if where else None)
    trace = load_trace(
        path,
        limit=requests,
        where=conditions,
        count_prompt=prompt_counter(REFERENCE),
        **(reading or {}),
    )
    if not skip_malformed:
        trace.refuse_rejected()
    progress.note(f"{trace.name}, read as {trace.layout}: {len(trace):,} requests")
    for reason, count in trace.left_out.items():
        progress.note(f"  left out {count:,}: {reason}")
    if trace.rejected:
        progress.note(f"  left out {len(trace.rejected):,} malformed rows")
    for note in trace.notes:
        progress.note(f"  {note}")
    return Workload(trace), predictor


def _from_prompts(
    path: Path,
    requests: int | None,
    split: str | None,
    where: Sequence[str] | None,
    predictor: str | None,
    skip_malformed: bool,
    progress: Progress,
) -> tuple[Workload, str | None]:
    loaded = None
    if predictor is not None and Path(predictor).is_dir():
        loaded = load_predictor(predictor, None)
    metadata = getattr(loaded, "metadata", None)
    tokenizer = load_tokenizer(metadata.tokenizer if metadata is not None else REFERENCE)
    table = load_dataset(
        path,
        split=split,
        where=parse_where(list(where) if where else None),
        limit=requests,
        count_tokens=tokenizer.count_tokens,
        refuses=tokenizer.refuses,
    )
    if not skip_malformed:
        table.refuse_rejected()
    for line in table.account():
        progress.note(line)
    answered = np.flatnonzero(table.lengths > 0)
    progress.stage("reading the prompts", total=len(answered))
    lengths: list[int] = []
    predictions = np.full((len(answered), 5), np.nan)
    for place, row in enumerate(answered):
        (ids,) = encode_prompts(table, tokenizer, [int(row)])
        lengths.append(max(len(ids), 1))
        if loaded is not None:
            try:
                predictions[place] = loaded.predict(Prompt(ids, {}))
            except PredictionError:
                continue
        if place % 256 == 0:
            progress.advance(place)
    trace = Trace(
        name=table.name,
        arrival_s=np.zeros(len(answered)),
        prompt_tokens=np.array(lengths, np.int64),
        output_tokens=table.lengths[answered],
        rejected=table.rejected,
        layout="prompts",
    )
    if loaded is None:
        return Workload(trace), predictor
    return Workload(trace, predictions), "given"


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
    axes = _axes(sweeps)
    seen: set[str] = set()
    used: set[str] = set()
    for values in itertools.product(*axes.values()):
        varied = dict(zip(axes, values, strict=True))
        for load in (part for text in loads for part in text.split(",")):
            for seed in seeds:
                for label, chosen in settings.items():
                    cell = _vary(
                        replace(base, label=label, load=parse_load(load), seed=seed),
                        chosen,
                        varied,
                        pausing,
                    )
                    used |= cell.tags.keys()
                    if repr(cell.key()) not in seen:
                        seen.add(repr(cell.key()))
                        yield cell
    for name in axes:
        if name not in used:
            raise InputError(
                f"--sweep {name}: no policy here depends on it: add one that does, or leave it out"
            )


#: settings that no cell can honour, with why; `tau_floor` is off in a comparison of bare policies
_SERVERS_OWN = {
    "shadow": "nothing is served here, and fcfs is stock vLLM's order",
    "tau_floor": "no rolling tau is simulated",
    "stand_in": "simulated predictions are there at once",
    "client_priority": "a trace has no classes",
    "max_tenant_lead": "a trace has no tenants",
    "record": "results are kept by --out",
    "journal": "results are kept by --out",
    "length_log": "results are kept by --out",
    "metrics_port": "no server runs",
    "metrics_host": "no server runs",
}


def _refuse_impossible(label: str, settings: Settings, pausing: bool) -> None:
    """Raise an InputError for a policy that asks for what no cell has."""
    for name, why in _SERVERS_OWN.items():
        off = None if name == "tau_floor" else Settings.model_fields[name].default
        if getattr(settings, name) != off:
            raise InputError(
                f"policy {label!r}: setting {name!r} is for a server and not simulated: {why}; "
                "leave it out"
            )
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


def _axes(sweeps: Sequence[str]) -> dict[str, list[float]]:
    """What is varied, each with its values."""
    axes: dict[str, list[float]] = {}
    for text in sweeps:
        name, values = _axis(text)
        if name in axes:
            raise InputError(
                f"--sweep {name} was given twice: give all its values in one, as in {name}=1,2,4"
            )
        axes[name] = values
    return axes


def _axis(text: str) -> tuple[str, list[float]]:
    """One `name=values`, each value as the setting of that name may be."""
    name, separator, values = text.partition("=")
    if name not in SWEPT:
        raise unknown_name("sweep", name, SWEPT)
    try:
        numbers = [float(value) for value in values.split(",")]
    except ValueError:
        numbers = []
    if not separator or not numbers:
        raise InputError(f"--sweep {text}: give numbers, as in {name}=1,2,4")
    for number in numbers:
        _check_swept(name, number)
    return name, numbers


def _check_swept(name: str, number: float) -> None:
    """Raise an InputError for a value that the setting or limit of that name cannot have."""
    where = f"--sweep {name}={number:g}"
    if name == "tau" and not 0.0 < number <= 1.0:
        raise InputError(f"{where}: tau must be above 0 and at most 1")
    try:
        if name in _WHOLE:
            whole = int(number) if number.is_integer() else number
            require_whole(name, whole, 0 if name == "max_overtakes" else 1)
        if name == "c":
            parse_settings({"policy": "trail", "predictor": "none", "parameters": {"c": number}})
        elif name in Settings.model_fields:
            parse_settings({name: number})
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def missed_loads(rows: Sequence[Figures]) -> Iterator[str]:
    """A line for each load that is a number where another one came, as sessions can make it."""
    offered: dict[str, list[float]] = {}
    for row in rows:
        if row["load"][0] in "0123456789." and row.get("offered_load") is not None:
            offered.setdefault(row["load"], []).append(row["offered_load"])
    for load, shares in offered.items():
        if max(abs(share / float(load) - 1.0) for share in shares) > LOAD_TOLERANCE:
            low, high = f"{min(shares):.2f}", f"{max(shares):.2f}"
            really = low if low == high else f"{low} to {high}"
            yield f"load {load}: really {really} of what the engines can do was asked of them"


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
