"""What verbs that simulate have in common: the workload, the engine and the costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lengthwise.errors import InputError

if TYPE_CHECKING:
    from lengthwise.advise.cell import Workload
    from lengthwise.cli.console import ConsoleProgress
    from lengthwise.simulate.engine_settings import EngineSettings
    from lengthwise.simulate.step_cost import StepCost


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
    from lengthwise.simulate.engine_settings import read_engine
    from lengthwise.simulate.presets import preset
    from lengthwise.simulate.step_cost import read_cost

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


def parse_load(text: str) -> str:
    """How requests arrive, as `Cell.load` has it.

    Raises:
        InputError: neither a share above 0 nor `burst`, `trace` or rate=R.
    """
    text = text.strip()
    if text in ("burst", "trace"):
        return text
    try:
        positive = float(text.removeprefix("rate=")) > 0.0
    except ValueError:
        positive = False
    if not positive:
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
    progress: ConsoleProgress,
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
    from lengthwise.advise.cell import Workload
    from lengthwise.cli.train import parse_where
    from lengthwise.predict.extract import prompt_counter
    from lengthwise.predict.tokenizer import REFERENCE
    from lengthwise.workload.load_trace import is_trace, load_trace

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
    progress: ConsoleProgress,
) -> tuple[Workload, str | None]:
    import numpy as np

    from lengthwise.advise.cell import Workload
    from lengthwise.cli.train import note_left_out, parse_where
    from lengthwise.predict.extract import encode_prompts
    from lengthwise.predict.load import load_predictor
    from lengthwise.predict.prediction import PredictionError, Prompt
    from lengthwise.predict.tokenizer import REFERENCE, load_tokenizer
    from lengthwise.workload.dataset import load_dataset
    from lengthwise.workload.trace import Trace

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
    note_left_out(progress, table)
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
